#include <algorithm>

#include "gpu/kernels/attention.cuh"

/// Attention of few tokens over long contexts. Grid: (splits of the context, KV heads, tokens); 4 warps. All query
/// heads of a KV head are the rows of one tile (16, or two tiles for groups to 32), so each cached byte is read once.
/// Each warp takes every fourth step of kPositions positions of the block's share, with two steps under way, and keeps
/// its own softmax; the four are merged in shared memory. Shared memory: queries (16 * tiles, dim) and two stages of K
/// and V per warp, f16; then the warps' results. combineSplits: grid (heads, tokens), a thread per value.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;

template <int kDim, int kTiles, int kPositions>
__global__ void __launch_bounds__(kThreads) attentionDecode(AttentionParams p) {
    extern __shared__ __align__(16) __half shared[];
    constexpr int kRows = 16 * kTiles, kTile = kPositions * kDim;
    __half* queries = shared;
    letSuccessorStart();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int split = static_cast<int>(blockIdx.x), kvHead = static_cast<int>(blockIdx.y);
    const int token = static_cast<int>(blockIdx.z), sequence = p.sequences[token], visible = p.visible[token];
    __half* stages = shared + kRows * kDim + warp * 4 * kTile;  // (2, K and V)

    // This block's positions: whole cache blocks.
    const int perSplit = (visible + kKvBlockPositions * p.nSplits - 1) / (kKvBlockPositions * p.nSplits);
    const int begin = split * perSplit * kKvBlockPositions;
    const int end = min(visible, begin + perSplit * kKvBlockPositions);

    // The batch's own arrays and the positions of earlier steps are there before the predecessor has finished.
    const int old = min(end, visible - p.nTokens);
    bool waited = false;
    const auto fetch = [&](int stage, int position) {
        if (!waited && position + kPositions > old) {
            waitForPredecessor();
            waited = true;
        }
        if (position < end) {
            const int64_t row = cacheRow(p, sequence, kvHead, position);
            __half* k = stages + stage * 2 * kTile;
            copyTile<kDim, 32>(k, static_cast<const __half*>(p.k) + row * kDim, kPositions, lane);
            copyTile<kDim, 32>(k + kTile, static_cast<const __half*>(p.v) + row * kDim, kPositions, lane);
        }
        commitCopies();
    };
    const int step = kWarps * kPositions;
#pragma unroll 1
    for (int stage = 0; stage < 2; stage++) fetch(stage, begin + warp * kPositions + stage * step);

    if (!waited) waitForPredecessor();
    const float scale = 1.4426950408889634f / sqrtf(static_cast<float>(kDim));
#pragma unroll 1
    for (int i = tid; i < kRows * kDim / 8; i += kThreads) {
        const int row = i / (kDim / 8), chunk = i % (kDim / 8), head = kvHead * p.group + row - p.headOffset;
        uint4 packed{};
        if (row < p.group && head >= 0 && head < p.nHeads) {
            const float* q = p.qkv + int64_t{token} * p.qkvCols + head * kDim + chunk * 8;
            packed = make_uint4(packHalves(q[0] * scale, q[1] * scale), packHalves(q[2] * scale, q[3] * scale),
                                packHalves(q[4] * scale, q[5] * scale), packHalves(q[6] * scale, q[7] * scale));
        }
        *reinterpret_cast<uint4*>(queries + tileOffset<kDim>(row, chunk)) = packed;
    }
    __syncthreads();

    FlashState<kDim> states[kTiles];
#pragma unroll 1
    for (int position = begin + warp * kPositions, stage = 0; position < end; position += step, stage ^= 1) {
        waitCopies<1>();
        __syncwarp();
        __half* k = stages + stage * 2 * kTile;
        if (position + kPositions > end) {
            clearRows<kDim, 32>(k + kTile, end - position, kPositions, lane);
            __syncwarp();
        }
        const int first[2] = {position - end, position - end};
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
            flashStep<kDim, kPositions>(states[tile], queries, tile * 16, k, k + kTile, first,
                                        position + kPositions > end);
        __syncwarp();
        fetch(stage, position + 2 * step);
    }
    waitCopies<0>();
    __syncthreads();

    // Merge the warps: (kWarps, kRows, kDim) values, then (kWarps, kRows) maxima and sums.
    float* values = reinterpret_cast<float*>(shared);
    float* largest = values + kWarps * kRows * kDim;
    float* sums = largest + kWarps * kRows;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
        finishSums(states[tile]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = warp * kRows + tile * 16 + g + 8 * r;
#pragma unroll
            for (int n = 0; n < kDim / 8; n++)
                *reinterpret_cast<float2*>(values + row * kDim + n * 8 + 2 * t) =
                    make_float2(states[tile].mixed[n][2 * r], states[tile].mixed[n][2 * r + 1]);
            if (t == 0) {
                largest[row] = states[tile].largest[r];
                sums[row] = states[tile].sum[r];
            }
        }
    }
    __syncthreads();
    // A warp's lanes have 32 neighbouring values of one head: a Q80 block where the result is final.
#pragma unroll 1
    for (int i = tid; i < p.group * kDim; i += kThreads) {
        const int row = i / kDim, col = i % kDim, head = kvHead * p.group + row - p.headOffset;
        if (head < 0 || head >= p.nHeads) continue;
        float most = -INFINITY;
        for (int w = 0; w < kWarps; w++) most = fmaxf(most, largest[w * kRows + row]);
        float sum = 0.0f, value = 0.0f;
        if (most > -INFINITY) {
            for (int w = 0; w < kWarps; w++) {
                const float share = fastExp2(largest[w * kRows + row] - most);
                sum += share * sums[w * kRows + row];
                value += share * values[(w * kRows + row) * kDim + col];
            }
        }
        if (p.nSplits == 1) {
            const float result = __fdividef(value, sum);
            p.out.f32[int64_t{token} * p.out.cols + head * kDim + col] = result;
            if (p.out.q.values) quantizeWarp(p.out.q, token, head * kDim + col, result);
        } else {
            const int64_t at = (int64_t{token} * p.nHeads + head) * p.nSplits + split;
            p.partial[at * kDim + col] = value;
            if (col == 0) {
                p.partialStats[at * 2] = most;
                p.partialStats[at * 2 + 1] = sum;
            }
        }
    }
}

template <int kDim>
__global__ void __launch_bounds__(kDim) combineSplits(AttentionParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int head = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
    const int col = static_cast<int>(threadIdx.x);
    const int64_t first = (int64_t{token} * p.nHeads + head) * p.nSplits;
    const float* stats = p.partialStats + first * 2;
    float most = -INFINITY;
    for (int s = 0; s < p.nSplits; s++) most = fmaxf(most, stats[2 * s]);
    float sum = 0.0f, value = 0.0f;
#pragma unroll 8
    for (int s = 0; s < p.nSplits; s++) {
        const float share = fastExp2(stats[2 * s] - most);
        sum += share * stats[2 * s + 1];
        value += share * p.partial[(first + s) * kDim + col];
    }
    const float result = __fdividef(value, sum);
    p.out.f32[int64_t{token} * p.out.cols + head * kDim + col] = result;
    if (p.out.q.values) quantizeWarp(p.out.q, token, head * kDim + col, result);
}

int tilesOf(const AttentionParams& p) {
    return p.group <= 16 ? 1 : 2;
}

size_t sharedBytes(const AttentionParams& p, int positions) {
    const size_t rows = 16 * tilesOf(p), dim = p.headDim;
    const size_t copies = sizeof(__half) * dim * (rows + kWarps * 4 * positions);
    const size_t merge = sizeof(float) * kWarps * rows * (dim + 2);
    return copies > merge ? copies : merge;
}

template <int kDim, int kTiles>
void launchSized(const AttentionParams& p, const Stream& stream) {
    const dim3 grid(p.nSplits, p.nKvHeads, p.nTokens);
    const bool wide = sharedBytes(p, 32) <= static_cast<size_t>(stream.sharedBytes);
    const size_t bytes = sharedBytes(p, wide ? 32 : 16);
    launch(stream, wide ? attentionDecode<kDim, kTiles, 32> : attentionDecode<kDim, kTiles, 16>, grid, kThreads, bytes,
           p);
    if (p.nSplits > 1) launch(stream, combineSplits<kDim>, dim3(p.nHeads, p.nTokens), kDim, 0, p);
}

}  // namespace

bool canAttentionDecode(const AttentionParams& p, const Stream& stream) {
    return !p.f32Cache && (p.headDim == 64 || p.headDim == 128) && p.group <= 32 &&
           sharedBytes(p, 16) <= static_cast<size_t>(stream.sharedBytes);
}

int attentionDecodeSplits(const AttentionParams& p, const Stream& stream) {
    // At least one step for each warp of a block, and no more blocks than run at once.
    const int steps = ceilDiv(p.maxVisible, kWarps * kKvBlockPositions);
    const int room = stream.nSms / (p.nKvHeads * p.nTokens);
    return std::max(1, std::min(steps, room));
}

void launchAttentionDecode(const AttentionParams& p, const Stream& stream) {
    if (p.headDim == 128)
        tilesOf(p) == 1 ? launchSized<128, 1>(p, stream) : launchSized<128, 2>(p, stream);
    else
        tilesOf(p) == 1 ? launchSized<64, 1>(p, stream) : launchSized<64, 2>(p, stream);
}

}  // namespace dllama::gpu
