#pragma once

#include "gpu/kernels/device.cuh"
#include "gpu/kernels/peer-sum.hpp"

/// How GPUs of one process send each other their parts of a sum.
///
/// A value travels in one 8-byte word with the epoch of the sum it belongs to:
///
///     rank 0, block b, epoch e                    rank 1, block b, epoch e
///       inbox of 1 [e odd][from 0] = {x, e}  -->    polls its inbox until it reads epoch e
///       polls its inbox until epoch e        <--  inbox of 0 [e odd][from 1] = {x, e}
///
/// 8 bytes are written and read as one, so the epoch says that the value beside it is there: no fences, and one way
/// through the link is all the time it takes. The epoch is counted in device memory, by the kernel itself, so that
/// recorded steps can be replayed; each block counts for itself, and always has the same values of the inbox, whatever
/// the size of a sum.
///
/// Why a word may be written again two epochs later: a rank writes epoch e + 2 only when its block b has ended e + 1,
/// for which it has read epoch e + 1 of every other rank; that rank wrote it after its kernel of epoch e had ended, and
/// so had read what it had received for e. And no word can be from a later epoch than the one that is waited for: e + 2
/// is not written anywhere before this rank has sent its e + 1. (Every kernel waits for the end of its predecessor
/// before it touches memory, also where the next one starts early.)
namespace dllama::gpu {

/// Between two looks at the host's flag, which lies beyond the bus.
constexpr int kPeerPolls = 1024;
/// A rank that sends nothing for so long is lost, even if its host says it is well.
constexpr uint64_t kPeerLimitNs = 60'000'000'000;

__device__ inline void storeWords(uint64_t* to, uint64_t a, uint64_t b) {
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1,%2};" ::"l"(to), "l"(a), "l"(b) : "memory");
}
__device__ inline void loadWords(const uint64_t* from, uint64_t& a, uint64_t& b) {
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0,%1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
}
__device__ inline uint64_t nanoseconds() {
    uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
}
__device__ inline uint64_t peerWord(float value, uint32_t epoch) {
    return uint64_t{epoch} << 32 | __float_as_uint(value);
}
__device__ inline float peerValue(uint64_t word) {
    return __uint_as_float(static_cast<uint32_t>(word));
}
__device__ inline bool isOfEpoch(uint64_t word, uint32_t epoch) {
    return static_cast<uint32_t>(word >> 32) == epoch;
}

/// The epoch of the sum that is being made, for the block of values that has value `first`. Past L1, which may hold
/// what was there before.
__device__ inline uint32_t epochOf(const Peers& p, int first) {
    return __ldcg(p.counters + first / kPeerBlockValues) + 1;
}
/// Where a rank receives value `first` of rank `from`.
__device__ inline size_t peerPlace(const Peers& p, int from, int first, uint32_t epoch) {
    return ((epoch % 2) * static_cast<size_t>(p.nRanks) + from) * (kPeerMaxBlocks * kPeerBlockValues) + first;
}

/// This rank's values first.. (an even number) go to all others.
template <int kValues>
__device__ inline void sendToPeers(const Peers& p, int first, uint32_t epoch, const float (&own)[kValues]) {
    const size_t place = peerPlace(p, p.rank, first, epoch);
    // Unrolled, so that addresses are read from the parameters and not from a copy on the stack.
#pragma unroll
    for (int r = 0; r < kMaxPeers; r++) {
        if (r >= p.nRanks || r == p.rank) continue;
#pragma unroll
        for (int i = 0; i < kValues; i += 2)
            storeWords(p.inboxes[r] + place + i, peerWord(own[i], epoch), peerWord(own[i + 1], epoch));
    }
}

/// Waits for the same values of rank `from`; gives up if the host says so, or tells it that time is over.
template <int kValues>
__device__ inline void receiveFromPeer(const Peers& p, int from, int first, uint32_t epoch, float (&values)[kValues]) {
    const uint64_t* place = p.inbox + peerPlace(p, from, first, epoch);
    uint64_t begin = 0;
    for (int polls = 1;; polls++) {
        uint64_t words[kValues];
#pragma unroll
        for (int i = 0; i < kValues; i += 2) loadWords(place + i, words[i], words[i + 1]);
        bool complete = true;
#pragma unroll
        for (int i = 0; i < kValues; i++) {
            complete = complete && isOfEpoch(words[i], epoch);
            values[i] = peerValue(words[i]);
        }
        if (complete) return;
        if (polls % kPeerPolls != 0) continue;
        if (*p.stop != 0) return;
        const uint64_t now = nanoseconds();
        if (begin == 0) begin = now;
        if (now - begin > kPeerLimitNs) *p.stop = 1;
    }
}

/// own = the sums over all ranks, added in rank order.
template <int kValues>
__device__ inline void sumOverPeers(const Peers& p, int first, uint32_t epoch, float (&own)[kValues]) {
    sendToPeers(p, first, epoch, own);
    float sums[kValues] = {};
    for (int r = 0; r < p.nRanks; r++) {
        float part[kValues] = {};
        if (r != p.rank) receiveFromPeer(p, r, first, epoch, part);
#pragma unroll
        for (int i = 0; i < kValues; i++) sums[i] += r == p.rank ? own[i] : part[i];
    }
#pragma unroll
    for (int i = 0; i < kValues; i++) own[i] = sums[i];
}

}  // namespace dllama::gpu
