#include "gpu/kernels/attention.cuh"

/// Attention of many tokens. Grid: (token tiles, KV heads); 4 warps of 16 query rows. The query heads of a KV head are
/// packed: row r of the tile is head r % group of token r / group, so that a tile of 64 rows is 64 / group tokens. K
/// and V pass through shared memory once per tile, in steps of kPositions, two steps under way. Shared memory: queries
/// (64, dim), and two stages of K and V (kPositions, dim), f16.
/// A tile whose tokens belong to several sequences passes over each of them in turn.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 128, kRows = 64;

template <int kDim, int kPositions>
__global__ void __launch_bounds__(kThreads) attentionPrefill(AttentionParams p) {
    extern __shared__ __align__(16) __half shared[];
    constexpr int kTile = kPositions * kDim;
    __half* queries = shared;
    __half* stages = shared + kRows * kDim;  // (2, K and V)
    letSuccessorStart();
    waitForPredecessor();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int kvHead = static_cast<int>(blockIdx.y), tileTokens = kRows / p.group;
    // Late tiles see most positions: they begin first.
    const int token0 = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * tileTokens;
    const int nTokens = min(tileTokens, p.nTokens - token0);

    const float scale = 1.4426950408889634f / sqrtf(static_cast<float>(kDim));
    for (int i = tid; i < kRows * kDim / 8; i += kThreads) {
        const int row = i / (kDim / 8), chunk = i % (kDim / 8);
        const int head = kvHead * p.group + row % p.group - p.headOffset;
        uint4 packed{};
        if (row / p.group < nTokens && head >= 0 && head < p.nHeads) {
            const float* q = p.qkv + int64_t{token0 + row / p.group} * p.qkvCols + head * kDim + chunk * 8;
            packed = make_uint4(packHalves(q[0] * scale, q[1] * scale), packHalves(q[2] * scale, q[3] * scale),
                                packHalves(q[4] * scale, q[5] * scale), packHalves(q[6] * scale, q[7] * scale));
        }
        *reinterpret_cast<uint4*>(queries + tileOffset<kDim>(row, chunk)) = packed;
    }

    const int rows[2] = {warp * 16 + g, warp * 16 + g + 8};
    FlashState<kDim> state;
    for (int begin = 0; begin < nTokens;) {
        // The tokens [begin, end) of the tile share a sequence.
        const int sequence = p.sequences[token0 + begin];
        int end = begin, most = 0, least = INT_MAX;
        for (; end < nTokens && p.sequences[token0 + end] == sequence; end++) {
            most = max(most, p.contextLengths[token0 + end]);
            least = min(least, p.contextLengths[token0 + end]);
        }
        int contextLength[2];
        for (int r = 0; r < 2; r++) {
            const int token = rows[r] / p.group;
            contextLength[r] = token >= begin && token < end ? p.contextLengths[token0 + token] : 0;
        }
        const bool alone = begin == 0 && end == nTokens;
        const auto fetch = [&](int stage, int position) {
            __half* k = stages + stage * 2 * kTile;
            for (int at = 0; at < kPositions; at += kKvBlockPositions) {
                // Past the last contextLength block the table need not be filled: read the last one again.
                const int from = min(position + at, (most - 1) / kKvBlockPositions * kKvBlockPositions);
                const int64_t row = cacheRow(p, sequence, kvHead, from);
                copyTile<kDim, kThreads>(k + at * kDim, static_cast<const __half*>(p.k) + row * kDim, kKvBlockPositions,
                                         tid);
                copyTile<kDim, kThreads>(k + kTile + at * kDim, static_cast<const __half*>(p.v) + row * kDim,
                                         kKvBlockPositions, tid);
            }
        };
        fetch(0, 0);
        commitCopies();
        for (int position = 0, stage = 0; position < most; position += kPositions, stage ^= 1) {
            if (position + kPositions < most) fetch(stage ^ 1, position + kPositions);
            commitCopies();
            waitCopies<1>();
            __syncthreads();
            __half* k = stages + stage * 2 * kTile;
            if (position + kPositions > most) {
                clearRows<kDim, kThreads>(k + kTile, most - position, kPositions, tid);
                __syncthreads();
            }
            const int first[2] = {position - contextLength[0], position - contextLength[1]};
            flashStep<kDim, kPositions>(state, queries, warp * 16, k, k + kTile, first,
                                        !alone || position + kPositions > least);
            __syncthreads();
        }
        waitCopies<0>();
        begin = end;
    }

    finishSums(state);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int head = kvHead * p.group + rows[r] % p.group - p.headOffset;
        const bool real = rows[r] / p.group < nTokens && head >= 0 && head < p.nHeads;
        const int64_t token = token0 + rows[r] / p.group;
        const float inverse = __fdividef(1.0f, state.sum[r]);
#pragma unroll
        for (int block = 0; block < kDim / 32; block++) {
            float most = 0.0f;
            for (int n = 4 * block; n < 4 * block + 4; n++)
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    state.mixed[n][i] *= inverse;
                    most = fmaxf(most, fabsf(state.mixed[n][i]));
                }
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
            most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
            if (!real) continue;
            const BlockScale by = blockScale(most);
            for (int n = 4 * block; n < 4 * block + 4; n++) {
                const int col = head * kDim + n * 8 + 2 * t;
                const float a = state.mixed[n][2 * r], b = state.mixed[n][2 * r + 1];
                *reinterpret_cast<float2*>(p.out.f32 + token * p.out.cols + col) = make_float2(a, b);
                if (p.out.q.values)
                    *reinterpret_cast<char2*>(p.out.q.values + token * p.out.q.groups * kGroup + quantOffset(col)) =
                        make_char2(quantValue(a, by.inverse), quantValue(b, by.inverse));
            }
            if (p.out.q.values && t == 0)
                p.out.q.scales[token * p.out.q.groups * 4 + (head * kDim) / 32 + block] = by.stored;
        }
    }
}

constexpr size_t sharedBytes(int dim, int positions) {
    return sizeof(__half) * dim * (kRows + 4 * positions);
}

}  // namespace

bool canAttentionPrefill(const AttentionParams& p, const Stream&) {
    return !p.f32Cache && (p.headDim == 64 || p.headDim == 128) && p.group <= kRows;
}

void launchAttentionPrefill(const AttentionParams& p, const Stream& stream) {
    const dim3 grid(ceilDiv(p.nTokens, kRows / p.group), p.nKvHeads);
    const bool wide = sharedBytes(p.headDim, 64) <= static_cast<size_t>(stream.sharedBytes);
    const auto kernel = p.headDim == 128 ? (wide ? attentionPrefill<128, 64> : attentionPrefill<128, 32>)
                                         : (wide ? attentionPrefill<64, 64> : attentionPrefill<64, 32>);
    launch(stream, kernel, grid, kThreads, sharedBytes(p.headDim, wide ? 64 : 32), p);
}

}  // namespace dllama::gpu
