#include "gpu/kernels/device.cuh"
#include "gpu/kernels/peer-all-reduce.hpp"

/// x = the sum of x over the GPUs of one process, each of which can write into the others' memory. One shot: every rank
/// sends its whole part to all and adds up what it receives in rank order, so all ranks hold the same bits. What counts
/// is latency: a step of one token has two all-reduces of some 16 KB in each layer.
///
/// Grid: a block for each kPeerBlockValues values, at most kPeerMaxBlocks: all must be resident at once, since they
/// wait for the other GPUs' blocks. Block: kThreads, two values a thread. Shared memory: none.
///
/// A value travels in one 8-byte word with the epoch of the all-reduce it belongs to:
///
///     rank 0, block b, epoch e                    rank 1, block b, epoch e
///       inbox of 1 [e odd][from 0] = {x, e}  -->    polls its inbox until it reads epoch e
///       polls its inbox until epoch e        <--  inbox of 0 [e odd][from 1] = {x, e}
///
/// 8 bytes are written and read as one, so the epoch says that the value beside it is there: no fences, and one way
/// through the link is all the time it takes. The epoch is counted in device memory, by the kernel itself, so that
/// recorded steps can be replayed; each block counts for itself, and always has the same values of the inbox, whatever
/// the size of an all-reduce.
///
/// Why a word may be written again two epochs later: a rank writes epoch e + 2 only when its block b has ended e + 1,
/// for which it has read epoch e + 1 of every other rank; that rank wrote it after its kernel of epoch e had ended, and
/// so had read what it had received for e. And no word can be from a later epoch than the one that is waited for: e + 2
/// is not written anywhere before this rank has sent its e + 1. (Every kernel waits for the end of its predecessor
/// before it touches memory, also where the next one starts early.)
namespace dllama::gpu {

namespace {

constexpr int kThreads = kPeerBlockValues / 2;
/// Between two looks at the host's flag, which lies beyond the bus.
constexpr int kPolls = 1024;
/// A rank that sends nothing for so long is lost, even if its host says it is well.
constexpr uint64_t kLimitNs = 60'000'000'000;

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
__device__ inline uint64_t wordOf(float value, uint32_t epoch) {
    return uint64_t{epoch} << 32 | __float_as_uint(value);
}
__device__ inline float valueOf(uint64_t word) {
    return __uint_as_float(static_cast<uint32_t>(word));
}
__device__ inline bool isOf(uint64_t word, uint32_t epoch) {
    return static_cast<uint32_t>(word >> 32) == epoch;
}

/// Waits for both words of this epoch; gives up if the host says so, or tells it that time is over.
__device__ inline void receive(const PeerAllReduceParams& p, const uint64_t* from, uint32_t epoch, uint64_t& a,
                               uint64_t& b) {
    uint64_t begin = 0;
    for (int polls = 1;; polls++) {
        loadWords(from, a, b);
        if (isOf(a, epoch) && isOf(b, epoch)) return;
        if (polls % kPolls != 0) continue;
        if (*p.stop != 0) return;
        const uint64_t now = nanoseconds();
        if (begin == 0) begin = now;
        if (now - begin > kLimitNs) *p.stop = 1;
    }
}

__global__ void __launch_bounds__(kThreads) peerAllReduce(PeerAllReduceParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int first = static_cast<int>(blockIdx.x) * kPeerBlockValues + static_cast<int>(threadIdx.x) * 2;
    const uint32_t epoch = p.counters[blockIdx.x] + 1;
    // A tail sends zeros: every word of a block carries each epoch.
    const float2 own = {first < p.n ? p.x[first] : 0.0f, first + 1 < p.n ? p.x[first + 1] : 0.0f};

    const size_t half = (epoch % 2) * static_cast<size_t>(p.nRanks);
    const auto at = [&](int from) { return (half + from) * (kPeerMaxBlocks * kPeerBlockValues) + first; };
    // Unrolled, so that addresses are read from the parameters and not from a copy on the stack.
#pragma unroll
    for (int r = 0; r < kMaxPeers; r++)
        if (r < p.nRanks && r != p.rank)
            storeWords(p.inboxes[r] + at(p.rank), wordOf(own.x, epoch), wordOf(own.y, epoch));
    float2 sum = {0.0f, 0.0f};
    for (int r = 0; r < p.nRanks; r++) {
        float2 part = own;
        if (r != p.rank) {
            uint64_t a = 0, b = 0;
            receive(p, p.inbox + at(r), epoch, a, b);
            part = {valueOf(a), valueOf(b)};
        }
        sum.x += part.x;
        sum.y += part.y;
    }
    if (first < p.n) p.x[first] = sum.x;
    if (first + 1 < p.n) p.x[first + 1] = sum.y;
    __syncthreads();  // all have read the counter
    if (threadIdx.x == 0) p.counters[blockIdx.x] = epoch;
}

}  // namespace

void launchPeerAllReduce(const PeerAllReduceParams& p, const Stream& stream) {
    launch(stream, peerAllReduce, ceilDiv(p.n, kPeerBlockValues), kThreads, 0, p);
}

}  // namespace dllama::gpu
