#include "gpu/kernels/peer-words.cuh"

/// x = the sum of x over the GPUs of one process, each of which can write into the others' memory. One shot: every rank
/// sends its whole part to all and adds up what it receives in rank order, so all ranks hold the same bits. What counts
/// is latency: a step of one token has two sums of some 16 KB in each layer.
///
/// Grid: a block for each kPeerBlockValues values, at most kPeerMaxBlocks: all must be resident at once, since they
/// wait for the other GPUs' blocks. Block: kThreads, two values a thread. Shared memory: none.
namespace dllama::gpu {

namespace {

constexpr int kThreads = kPeerBlockValues / 2;

__global__ void __launch_bounds__(kThreads) peerSum(PeerSumParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int first = static_cast<int>(blockIdx.x) * kPeerBlockValues + static_cast<int>(threadIdx.x) * 2;
    const uint32_t epoch = epochOf(p.peers, first);
    // A tail sends zeros: every word of a block carries each epoch.
    float x[2] = {first < p.n ? p.x[first] : 0.0f, first + 1 < p.n ? p.x[first + 1] : 0.0f};
    sumOverPeers(p.peers, first, epoch, x);
    if (first < p.n) p.x[first] = x[0];
    if (first + 1 < p.n) p.x[first + 1] = x[1];
    __syncthreads();  // all have read the counter
    if (threadIdx.x == 0) p.peers.counters[blockIdx.x] = epoch;
}

}  // namespace

void launchPeerSum(const PeerSumParams& p, const Stream& stream) {
    launch(stream, peerSum, ceilDiv(p.n, kPeerBlockValues), kThreads, 0, p);
}

}  // namespace dllama::gpu
