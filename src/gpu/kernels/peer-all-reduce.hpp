#pragma once

#include <cstdint>

#include "gpu/kernels/launch.hpp"

namespace dllama::gpu {

/// GPUs that add up in each other's memory.
constexpr int kMaxPeers = 8;
/// Values that a block adds up, and that one launch does at most.
constexpr int kPeerBlockValues = 512, kPeerMaxBlocks = 128;

/// Bytes of the memory in which a rank receives: (2, nRanks, kPeerMaxBlocks * kPeerBlockValues) pairs of value and
/// epoch, and of its counters: one for each block. Both begin as zeros.
constexpr size_t peerInboxBytes(int nRanks) {
    return size_t{2} * nRanks * kPeerMaxBlocks * kPeerBlockValues * sizeof(uint64_t);
}
constexpr size_t kPeerCounterBytes = kPeerMaxBlocks * sizeof(uint32_t);

struct PeerAllReduceParams {
    int n;     // values; at most kPeerMaxBlocks * kPeerBlockValues
    float* x;  // this rank's part, then the sum; 8-byte aligned
    int rank, nRanks;
    uint64_t* inbox;               // of this rank
    uint64_t* inboxes[kMaxPeers];  // of each rank
    uint32_t* counters;            // of this rank
    volatile uint32_t* stop;       // in host memory: not 0 once there is no use in waiting
};
/// All ranks must launch the same all-reduces in the same order.
void launchPeerAllReduce(const PeerAllReduceParams& p, const Stream& stream);

}  // namespace dllama::gpu
