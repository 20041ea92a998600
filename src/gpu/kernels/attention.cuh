#pragma once

#include "gpu/kernels/device.cuh"

/// Flash attention of 16 query rows by one warp: what the decode and the prefill kernel share. Tiles in shared memory
/// are rows of kDim f16 whose 16-byte chunks are permuted by the row number, so that eight rows of one chunk column lie
/// in different banks.
namespace dllama::gpu {

template <int kDim>
__device__ inline int tileOffset(int row, int chunk) {
    return row * kDim + ((chunk ^ (row & 7)) * 8);
}

/// Copies `rows` (a multiple of what a block of cache rows holds) consecutive cache rows to a tile, by kThreads
/// threads.
template <int kDim, int kThreads>
__device__ inline void copyTile(__half* tile, const __half* from, int rows, int thread) {
    constexpr int kChunks = kDim / 8;
#pragma unroll 4
    for (int i = thread; i < rows * kChunks; i += kThreads)
        copyAsync<16>(tile + tileOffset<kDim>(i / kChunks, i % kChunks), from + int64_t{i} * 8);
}

/// Zeroes rows [from, to) of a tile of values: what lies in the cache behind the last contextLength position may be no
/// number, and no weight of 0 makes it vanish.
template <int kDim, int kThreads>
__device__ inline void clearRows(__half* tile, int from, int to, int thread) {
    constexpr int kChunks = kDim / 8;
#pragma unroll 1
    for (int i = from * kChunks + thread; i < to * kChunks; i += kThreads)
        *reinterpret_cast<uint4*>(tile + i * 8) = uint4{};
}

/// Where the cached rows of a position's block begin.
__device__ inline int64_t cacheRow(const AttentionParams& p, int sequence, int kvHead, int position) {
    const int64_t block = p.blockTables[int64_t{sequence} * p.maxBlocks + position / kKvBlockPositions];
    return (block * p.nKvHeads + kvHead) * kKvBlockPositions + position % kKvBlockPositions;
}

/// Rows g and g + 8 of the warp's 16: running maximum (of scores times log2 e), the lane's part of the sum, and the
/// mixed values in accumulator layout.
template <int kDim>
struct FlashState {
    float largest[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f};
    float mixed[kDim / 8][4] = {};
};

/// Adds kPositions positions. q: tile of queries already times log2(e) / sqrt(kDim), of which rows row0.. are the
/// warp's. first[r]: the position of the tile's first row minus how many positions row g + 8r sees (so column c counts
/// if first + c < 0); anything >= 0 hides the whole tile.
template <int kDim, int kPositions>
__device__ inline void flashStep(FlashState<kDim>& state, const __half* q, int row0, const __half* k, const __half* v,
                                 const int (&first)[2], bool masked) {
    const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
    float scores[kPositions / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 32; step++) {
        uint32_t a[2][4];
        for (int half = 0; half < 2; half++)
            loadMatrices(a[half],
                         sharedAddress(q + tileOffset<kDim>(row0 + lane % 16, step * 4 + half * 2 + lane / 16)));
#pragma unroll
        for (int n = 0; n < kPositions / 8; n++) {
            uint32_t b[4];
            loadMatrices(b, sharedAddress(k + tileOffset<kDim>(n * 8 + lane % 8, step * 4 + lane / 8)));
            mmaF16(scores[n], a[0], b[0], b[1]);
            mmaF16(scores[n], a[1], b[2], b[3]);
        }
    }
    if (masked) {
#pragma unroll
        for (int n = 0; n < kPositions / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (first[i / 2] + n * 8 + 2 * t + i % 2 >= 0) scores[n][i] = -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float largest = state.largest[r];
#pragma unroll
        for (int n = 0; n < kPositions / 8; n++)
            largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        // A row that has seen nothing keeps -inf; subtracting 0 instead leaves its terms at 0.
        const float base = largest == -INFINITY ? 0.0f : largest;
        const float keep = fastExp2(state.largest[r] - base);
        state.largest[r] = largest;
        state.sum[r] *= keep;
#pragma unroll
        for (int n = 0; n < kPositions / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                scores[n][i] = fastExp2(scores[n][i] - base);
                state.sum[r] += scores[n][i];
            }
#pragma unroll
        for (int d = 0; d < kDim / 8; d++) {
            state.mixed[d][2 * r] *= keep;
            state.mixed[d][2 * r + 1] *= keep;
        }
    }
#pragma unroll
    for (int step = 0; step < kPositions / 16; step++) {
        const uint32_t a[4] = {packHalves(scores[2 * step][0], scores[2 * step][1]),
                               packHalves(scores[2 * step][2], scores[2 * step][3]),
                               packHalves(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                               packHalves(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
        for (int d = 0; d < kDim / 16; d++) {
            uint32_t b[4];
            loadMatricesTransposed(b, sharedAddress(v + tileOffset<kDim>(step * 16 + lane % 16, d * 2 + lane / 16)));
            mmaF16(state.mixed[2 * d], a, b[0], b[1]);
            mmaF16(state.mixed[2 * d + 1], a, b[2], b[3]);
        }
    }
}

/// The lanes' sums become the rows' sums.
template <int kDim>
__device__ inline void finishSums(FlashState<kDim>& state) {
#pragma unroll
    for (float& sum : state.sum) {
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
    }
}

}  // namespace dllama::gpu
