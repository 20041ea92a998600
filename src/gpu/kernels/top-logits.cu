#include "gpu/kernels/device.cuh"

/// The best logits of each row, and the sum its probabilities are divided by. Grid: (columns / 2048, rows); 512
/// threads. Each warp takes the largest of two pieces of 64 columns and a part of the sum; the last block of a row to
/// finish does the rest: the k best pieces hold the k best logits, so that few values are looked at twice.
///
/// Values are compared as keys: 32 bits in the order of the floats, then the column, the lower one first. Zero is no
/// key. Numbers that are none come before all others.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kPiece = 64, kPiecesOfWarp = 2, kPiecesOfBlock = kWarps * kPiecesOfWarp;
constexpr int kFinalists = 128;                          // as many are sorted at the end
constexpr int kValues = kFinalists * kPiece / kThreads;  // of the best pieces, that a thread looks at
constexpr int kThreadsOfFinalist = kThreads / kFinalists;
constexpr int kFewKeys = 8, kManyKeys = 32;  // pieces of the row that a thread of the last block has

using Key = unsigned long long;

__device__ inline uint32_t orderedBits(float x) {
    if (isnan(x)) return ~0u;
    const uint32_t bits = __float_as_uint(x + 0.0f);  // -0 is as good as 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float valueOf(uint32_t ordered) {
    return ordered == ~0u ? NAN : __uint_as_float(ordered >> 31 ? ordered ^ 0x80000000u : ~ordered);
}
__device__ inline Key keyOf(float x, int col) {
    return Key{orderedBits(x)} << 32 | ~static_cast<uint32_t>(col);
}
__device__ inline int columnOf(Key key) {
    return static_cast<int>(~static_cast<uint32_t>(key));
}

__device__ inline uint32_t warpMost(uint32_t x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(~0u, x);
#else
    for (int d = 16; d > 0; d /= 2) x = max(x, __shfl_xor_sync(~0u, x, d));
    return x;
#endif
}
__device__ inline uint32_t warpTotal(uint32_t x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(~0u, x);
#else
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
#endif
}

/// Values of all warps become one that every thread gets. Two buffers in turn: who writes to one has passed the barrier
/// of the other, behind which nobody reads the first any more.
struct BlockReduction {
    uint32_t (*parts)[32];  // (2, 32) in shared memory
    int turn = 0;
    template <typename Warp>
    __device__ uint32_t operator()(uint32_t x, const Warp& ofWarp) {
        const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
        x = ofWarp(x);
        if (lane == 0) parts[turn][warp] = x;
        __syncthreads();
        x = ofWarp(lane < kWarps ? parts[turn][lane] : 0u);
        turn ^= 1;
        return x;
    }
};

/// Raises a threshold, bit by bit from the highest, while more than kFinalists keys reach it and at least k still do.
struct Threshold {
    Key value = 0;
    int bit = 63;

    template <int kKeys>
    __device__ void raise(const Key (&keys)[kKeys], Key most, int k, BlockReduction& reduce) {
        const auto reaching = [&](Key threshold) {
            uint32_t n = 0;
#pragma unroll
            for (const Key key : keys) n += key != 0 && key >= threshold;
            return static_cast<int>(reduce(n, warpTotal));
        };
        int count = reaching(value);
        while (count > kFinalists && bit >= 0) {
            const Key higher = value | Key{1} << bit--;
            if (higher > most) continue;
            const int n = reaching(higher);
            if (n < k) continue;
            value = higher;
            count = n;
        }
    }
};

struct Shared {
    uint32_t parts[2][32];
    Key finalists[kFinalists];
    int pieces[kFinalists];
    int nPieces, nFinalists;
    bool last;
};

template <int kKeys>
__device__ void finishRow(const TopLogitsParams& p, Shared& shared, float factor) {
    const int tid = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y), k = p.k;
    const float* logits = p.logits + int64_t{row} * p.cols;
    BlockReduction reduce{shared.parts};
    const int nPieces = static_cast<int>(gridDim.x) * kPiecesOfBlock, nParts = static_cast<int>(gridDim.x) * kWarps;
    Key keys[kKeys];
    uint32_t top = 0;
#pragma unroll
    for (int j = 0; j < kKeys; j++) {
        const int i = j * kThreads + tid;
        keys[j] = i < nPieces ? __ldcg(&p.keys[int64_t{row} * nPieces + i]) : 0;
        top = max(top, static_cast<uint32_t>(keys[j] >> 32));
    }
    top = reduce(top, warpMost);

    const float largest = valueOf(top), base = largest == -INFINITY ? 0.0f : largest;
    float sum = 0.0f;
    for (int i = tid; i < nParts; i += kThreads) {
        const float2 part = __ldcg(&p.parts[int64_t{row} * nParts + i]);
        sum += part.y * fastExp2((part.x - base) * factor);
    }
    sum = __uint_as_float(
        reduce(__float_as_uint(sum), [](uint32_t x) { return __float_as_uint(warpSum(__uint_as_float(x))); }));

    // The best pieces.
    const Key most = Key{top} << 32 | ~0u;
    Threshold threshold;
    threshold.raise(keys, most, k, reduce);
#pragma unroll
    for (const Key key : keys)
        if (key != 0 && key >= threshold.value) shared.pieces[atomicAdd(&shared.nPieces, 1)] = columnOf(key) / kPiece;
    __syncthreads();

    // Their values.
    Key values[kValues];
    const int n = shared.nPieces * kPiece;
#pragma unroll
    for (int j = 0; j < kValues; j++) {
        const int i = j * kThreads + tid;
        const int col = i < n ? shared.pieces[i / kPiece] * kPiece + i % kPiece : p.cols;
        values[j] = col < p.cols ? keyOf(logits[col], col) : 0;
    }
    threshold.raise(values, most, k, reduce);
#pragma unroll
    for (const Key key : values)
        if (key != 0 && key >= threshold.value) shared.finalists[atomicAdd(&shared.nFinalists, 1)] = key;
    __syncthreads();

    // Each takes the place of its rank.
    const int nFinalists = shared.nFinalists, mine = tid / kThreadsOfFinalist;
    const Key key = mine < nFinalists ? shared.finalists[mine] : 0;
    uint32_t before = 0;
    for (int i = tid % kThreadsOfFinalist; i < nFinalists; i += kThreadsOfFinalist) before += shared.finalists[i] > key;
#pragma unroll
    for (int d = 1; d < kThreadsOfFinalist; d *= 2) before += __shfl_xor_sync(~0u, before, d);
    float* out = p.out + int64_t{row} * p.outCols;
    const int rank = static_cast<int>(before);
    if (tid % kThreadsOfFinalist == 0 && mine < nFinalists && rank < k) {
        const int col = columnOf(key);
        const float value = logits[col];
        if (rank == 0) out[0] = value;
        out[2 + rank] = value;
        out[2 + k + rank] = static_cast<float>(p.firstToken + col);
    }
    if (tid == 0) out[1] = sum;
    if (tid >= nFinalists && tid < k) {
        out[2 + tid] = -INFINITY;
        out[2 + k + tid] = -1.0f;
    }
}

template <int kKeys>
__global__ void __launch_bounds__(kThreads) topLogits(TopLogitsParams p) {
    __shared__ Shared shared;
    letSuccessorStart();
    waitForPredecessor();
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, row = static_cast<int>(blockIdx.y);
    const int part = static_cast<int>(blockIdx.x) * kWarps + tid / 32;
    const float* logits = p.logits + int64_t{row} * p.cols;
    const float temperature = p.temperatures[row];
    const float factor = 1.4426950408889634f / (temperature > 0.0f ? temperature : 1.0f);

    constexpr int kOfLane = kPiecesOfWarp * kPiece / 32;
    const int col0 = part * kPiecesOfWarp * kPiece + lane;
    float x[kOfLane], largest = -INFINITY;
#pragma unroll
    for (int j = 0; j < kOfLane; j++) x[j] = col0 + 32 * j < p.cols ? logits[col0 + 32 * j] : -INFINITY;
#pragma unroll
    for (int j = 0; j < kOfLane; j++) largest = fmaxf(largest, x[j]);
    largest = warpMax(largest);
    const float base = largest == -INFINITY ? 0.0f : largest;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kOfLane; j++) sum += fastExp2((x[j] - base) * factor);
    sum = warpSum(sum);
    if (lane == 0) p.parts[int64_t{row} * gridDim.x * kWarps + part] = make_float2(largest, sum);
#pragma unroll
    for (int piece = 0; piece < kPiecesOfWarp; piece++) {
        Key best = 0;
#pragma unroll
        for (int j = piece * kPiece / 32; j < (piece + 1) * kPiece / 32; j++) {
            const int col = col0 + 32 * j;
            if (col < p.cols) best = max(best, keyOf(x[j], col));
        }
        const uint32_t high = warpMost(static_cast<uint32_t>(best >> 32));
        const uint32_t low = warpMost(best >> 32 == high ? static_cast<uint32_t>(best) : 0u);
        if (lane == 0)
            p.keys[int64_t{row} * gridDim.x * kPiecesOfBlock + part * kPiecesOfWarp + piece] = Key{high} << 32 | low;
    }

    __threadfence();
    __syncthreads();
    if (tid == 0) {
        shared.last = atomicAdd(&p.arrived[row], 1) == static_cast<int>(gridDim.x) - 1;
        shared.nPieces = shared.nFinalists = 0;
    }
    __syncthreads();
    if (!shared.last) return;
    __threadfence();
    if (tid == 0) p.arrived[row] = 0;
    finishRow<kKeys>(p, shared, factor);
}

int blocksFor(int cols) {
    return ceilDiv(cols, kPiecesOfBlock * kPiece);
}

}  // namespace

size_t topLogitsKeys(int rows, int cols) {
    return size_t(rows) * blocksFor(cols) * kPiecesOfBlock;
}
size_t topLogitsParts(int rows, int cols) {
    return size_t(rows) * blocksFor(cols) * kWarps;
}

bool canTopLogits(int cols, int k) {
    return k >= 1 && k <= kFinalists && blocksFor(cols) * kPiecesOfBlock <= kManyKeys * kThreads;
}

void launchTopLogits(const TopLogitsParams& p, const Stream& stream) {
    const dim3 grid(blocksFor(p.cols), p.rows);
    const bool few = static_cast<int>(grid.x) * kPiecesOfBlock <= kFewKeys * kThreads;
    launch(stream, few ? topLogits<kFewKeys> : topLogits<kManyKeys>, grid, kThreads, 0, p);
}

}  // namespace dllama::gpu
