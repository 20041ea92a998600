#include <algorithm>
#include <climits>

#include "gpu/kernels/attention.cuh"
#include "gpu/kernels/rope.cuh"

/// Attention of few tokens over long contexts. Grid: (splits of the context, KV heads, tokens); 4 warps. All query
/// heads of a KV head are the rows of one tile (16, or two tiles for groups to 32), so each cached byte is read once.
/// Each warp takes every fourth step of kPositions positions of the block's share, with two steps under way, and keeps
/// its own softmax; the four are merged in shared memory. Shared memory: queries (16 * tiles, dim) and two stages of K
/// and V per warp, f16; then the warps' results. Up to kMaxCluster splits are a cluster of blocks (from 9.0 on), which
/// merges its results through each other's shared memory; otherwise combineSplits: grid (heads, tokens), a thread per
/// value.
///
/// If the kernel rotates (AttentionParams::turns), each block does so for the query heads it needs and the new key, and
/// the block whose share has the token's position stores the new key and value. Further shared memory: these heads
/// (group + 2, dim) and the angles, f32.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kMaxCluster = 8;

/// Rows of merged values begin 8 banks apart, so that the rows of a store of accumulators do not meet.
constexpr int kPad = 8;

/// Softmax parts that saw different positions: their largest scores, sums and four of the mixed values become one.
template <int kParts>
struct Merged {
    float most = -INFINITY, sum = 0.0f, value[4] = {};
    __device__ Merged(const float (&largest)[kParts], const float (&sums)[kParts], const float4 (&values)[kParts]) {
#pragma unroll
        for (const float other : largest) most = fmaxf(most, other);
        const float base = most == -INFINITY ? 0.0f : most;  // nothing seen: all shares are 0
#pragma unroll
        for (int i = 0; i < kParts; i++) {
            const float share = fastExp2(largest[i] - base);
            sum += share * sums[i];
            value[0] += share * values[i].x;
            value[1] += share * values[i].y;
            value[2] += share * values[i].z;
            value[3] += share * values[i].w;
        }
    }
};

/// Four values of a head; every eight lanes have a Q80 block.
__device__ inline void writeResult(const AttentionParams& p, int token, int at, const float (&value)[4], float sum) {
    float result[4];
#pragma unroll
    for (int j = 0; j < 4; j++) result[j] = __fdividef(value[j], sum);
    *reinterpret_cast<float4*>(p.out.f32 + int64_t{token} * p.out.cols + at) =
        make_float4(result[0], result[1], result[2], result[3]);
    if (p.out.q.values) quantizePieces(p.out.q, token, at, result);
}

/// Puts a new key and value into row `row` of the tiles that were copied without them.
template <int kDim>
__device__ inline void patchRow(__half* k, __half* v, int row, const float* newKey, int lane) {
    constexpr int kChunks = kDim / 8;
    for (int i = lane; i < 2 * kChunks; i += 32) {
        const float* from = newKey + i * 8;  // the value stands behind the key
        __half* to = (i < kChunks ? k : v) + tileOffset<kDim>(row, i % kChunks);
        *reinterpret_cast<uint4*>(to) = make_uint4(packHalves(from[0], from[1]), packHalves(from[2], from[3]),
                                                   packHalves(from[4], from[5]), packHalves(from[6], from[7]));
    }
}

template <int kDim, int kTiles, int kPositions, bool kCluster>
__global__ void __launch_bounds__(kThreads) attentionDecode(AttentionParams p) {
    extern __shared__ __align__(16) __half shared[];
    constexpr int kRows = 16 * kTiles, kTile = kPositions * kDim;
    __half* queries = shared;
    letSuccessorStart();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int split = static_cast<int>(blockIdx.x), kvHead = static_cast<int>(blockIdx.y);
    const int token = static_cast<int>(blockIdx.z), sequence = p.sequences[token],
              contextLength = p.contextLengths[token];
    __half* stages = shared + kRows * kDim + warp * 4 * kTile;  // (2, K and V)

    // This block's positions: whole cache blocks.
    const int perSplit = (contextLength + kKvBlockPositions * p.nSplits - 1) / (kKvBlockPositions * p.nSplits);
    const int begin = split * perSplit * kKvBlockPositions;
    const int end = min(contextLength, begin + perSplit * kKvBlockPositions);

    // The batch's own arrays and the positions of earlier steps are there before the predecessor has finished. A new
    // position that this kernel stores is put into its tile by patchRow.
    const int fresh = p.turns ? p.rope.positions[token] : -1;
    const int old = p.turns ? INT_MAX - kPositions : min(end, contextLength - p.nTokens);
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

    // Heads to rotate: the group's queries, the new key and the new value.
    float *heads = reinterpret_cast<float*>(shared + (kRows + kWarps * 4 * kPositions) * kDim),
          *newKey = heads + p.group * kDim, *cosines = newKey + 2 * kDim, *sines = cosines;
    const auto headOf = [&](int row) {
        const int head = kvHead * p.group + row - p.headOffset;
        return head >= 0 && head < p.nHeads ? head : -1;
    };
    if (p.turns) {
        const int half = p.rope.rotaryDim / 2;
        sines += p.rope.parts * half;
        for (int i = tid; i < p.rope.parts * half; i += kThreads) {
            const int64_t at = int64_t{p.rope.ropePositions[i / half * p.nTokens + token]} * half + i % half;
            copyAsync<4>(cosines + i, p.rope.cos + at);
            copyAsync<4>(sines + i, p.rope.sin + at);
        }
    }
    if (!waited) waitForPredecessor();
    if (p.turns) {
        constexpr int kPieces = kDim / 4;
#pragma unroll 2
        for (int i = tid; i < (p.group + 2) * kPieces; i += kThreads) {
            const int row = i / kPieces;
            const int head = row < p.group ? headOf(row) : p.nHeads + (row - p.group) * p.nKvHeads + kvHead;
            if (head < 0) continue;
            copyAsync<16>(heads + i * 4, p.qkv + int64_t{token} * p.qkvCols + head * kDim + i % kPieces * 4);
        }
        commitCopies();
        waitCopies<0>();
        __syncthreads();
#pragma unroll 1
        for (int row = warp; row < p.group + 1; row += kWarps) {
            float* x = heads + row * kDim;
            const bool isQ = row < p.group;
            if (isQ && headOf(row) < 0) continue;
            if (isQ ? p.rope.hasQNorm : p.rope.hasKNorm) normalizeHead(isQ ? p.rope.qNorm : p.rope.kNorm, x, kDim);
            rotateHead(p.rope, x, [&](int part, int pair) {
                const int i = part * (p.rope.rotaryDim / 2) + pair;
                return make_float2(cosines[i], sines[i]);
            });
        }
        __syncthreads();
        // The last block also stores what nobody sees yet.
        if (split == min(fresh / (perSplit * kKvBlockPositions), p.nSplits - 1)) {
            const int64_t at = cacheRow(p, sequence, kvHead, fresh) * kDim;
            for (int i = tid; i < 2 * kDim; i += kThreads)
                static_cast<__half*>(i < kDim ? p.rope.k : p.rope.v)[at + i % kDim] = __float2half_rn(newKey[i]);
        }
    }
    const float scale = 1.4426950408889634f / sqrtf(static_cast<float>(kDim));
#pragma unroll 2
    for (int i = tid; i < kRows * kDim / 8; i += kThreads) {
        const int row = i / (kDim / 8), chunk = i % (kDim / 8), head = row < p.group ? headOf(row) : -1;
        uint4 packed{};
        if (head >= 0) {
            const float* from = p.turns ? heads + row * kDim : p.qkv + int64_t{token} * p.qkvCols + head * kDim;
            const auto* q = reinterpret_cast<const float4*>(from) + chunk * 2;
            const float4 a = q[0], b = q[1];
            packed = make_uint4(packHalves(a.x * scale, a.y * scale), packHalves(a.z * scale, a.w * scale),
                                packHalves(b.x * scale, b.y * scale), packHalves(b.z * scale, b.w * scale));
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
        if (fresh >= position && fresh < min(position + kPositions, end)) {
            patchRow<kDim>(k, k + kTile, fresh - position, newKey, lane);
            __syncwarp();
        }
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

    // Merge the warps: (kWarps, kRows, kPitch) values, then (kWarps, kRows) maxima and sums; then the block's maxima
    // and sums (kRows). The block's values take the place of its first warp's.
    constexpr int kPitch = kDim + kPad, kRowPieces = kDim / 4;
    float* values = reinterpret_cast<float*>(shared);
    float* largest = values + kWarps * kRows * kPitch;
    float* sums = largest + kWarps * kRows;
    float *blockLargest = sums + kWarps * kRows, *blockSums = blockLargest + kRows;
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++) {
        finishSums(states[tile]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = warp * kRows + tile * 16 + g + 8 * r;
#pragma unroll
            for (int n = 0; n < kDim / 8; n++)
                *reinterpret_cast<float2*>(values + row * kPitch + n * 8 + 2 * t) =
                    make_float2(states[tile].mixed[n][2 * r], states[tile].mixed[n][2 * r + 1]);
            if (t == 0) {
                largest[row] = states[tile].largest[r];
                sums[row] = states[tile].sum[r];
            }
        }
    }
    __syncthreads();
#pragma unroll 2
    for (int i = tid; i < p.group * kRowPieces; i += kThreads) {
        const int row = i / kRowPieces, col = i % kRowPieces * 4, head = headOf(row);
        if (head < 0) continue;
        float maxima[kWarps], parts[kWarps];
        float4 mixed[kWarps];
#pragma unroll
        for (int w = 0; w < kWarps; w++) {
            maxima[w] = largest[w * kRows + row];
            parts[w] = sums[w * kRows + row];
            mixed[w] = *reinterpret_cast<float4*>(values + (w * kRows + row) * kPitch + col);
        }
        const Merged<kWarps> all(maxima, parts, mixed);
        const float4 value = make_float4(all.value[0], all.value[1], all.value[2], all.value[3]);
        if constexpr (kCluster) {
            *reinterpret_cast<float4*>(values + row * kPitch + col) = value;
            if (col == 0) {
                blockLargest[row] = all.most;
                blockSums[row] = all.sum;
            }
        } else if (p.nSplits == 1) {
            writeResult(p, token, head * kDim + col, all.value, all.sum);
        } else {
            const int64_t at = (int64_t{token} * p.nHeads + head) * p.nSplits + split;
            *reinterpret_cast<float4*>(p.partial + at * kDim + col) = value;
            if (col == 0) {
                p.partialStats[at * 2] = all.most;
                p.partialStats[at * 2 + 1] = all.sum;
            }
        }
    }
    if constexpr (kCluster) {
        syncCluster();
        // The warps of all blocks take turns.
#pragma unroll 1
        for (int i = (warp * p.nSplits + split) * 32 + lane; i < p.group * kRowPieces; i += p.nSplits * kThreads) {
            const int row = i / kRowPieces, col = i % kRowPieces * 4, head = headOf(row);
            if (head < 0) continue;
            float maxima[kMaxCluster], parts[kMaxCluster];
            float4 mixed[kMaxCluster];
#pragma unroll
            for (int s = 0; s < kMaxCluster; s++) {
                const int from = min(s, p.nSplits - 1);
                maxima[s] = s < p.nSplits ? loadFromBlock(blockLargest + row, from) : -INFINITY;
                parts[s] = loadFromBlock(blockSums + row, from);
                mixed[s] = loadFromBlock(reinterpret_cast<float4*>(values + row * kPitch + col), from);
            }
            const Merged<kMaxCluster> all(maxima, parts, mixed);
            writeResult(p, token, head * kDim + col, all.value, all.sum);
        }
        syncCluster();  // no block leaves while others read its memory
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

bool inCluster(const AttentionParams& p, const Stream& stream) {
    return p.nSplits > 1 && p.nSplits <= kMaxCluster && stream.computeCapability >= 90;
}

int tilesOf(const AttentionParams& p) {
    return p.group <= 16 ? 1 : 2;
}

size_t sharedBytes(const AttentionParams& p, int positions) {
    const size_t rows = 16 * tilesOf(p), dim = p.headDim;
    const size_t turned = p.turns ? sizeof(float) * ((p.group + 2) * dim + p.rope.parts * p.rope.rotaryDim) : 0;
    const size_t copies = sizeof(__half) * dim * (rows + kWarps * 4 * positions) + turned;
    const size_t merge = sizeof(float) * rows * (kWarps * (dim + kPad + 2) + 2);
    return copies > merge ? copies : merge;
}

template <int kDim, int kTiles, int kPositions>
void launchSized(const AttentionParams& p, const Stream& stream) {
    const dim3 grid(p.nSplits, p.nKvHeads, p.nTokens);
    const size_t bytes = sharedBytes(p, kPositions);
    if (inCluster(p, stream))
        return launch(stream, attentionDecode<kDim, kTiles, kPositions, true>, grid, kThreads, bytes, p, p.nSplits);
    launch(stream, attentionDecode<kDim, kTiles, kPositions, false>, grid, kThreads, bytes, p);
    if (p.nSplits > 1) launch(stream, combineSplits<kDim>, dim3(p.nHeads, p.nTokens), kDim, 0, p);
}

template <int kDim, int kTiles>
void launchTiled(const AttentionParams& p, const Stream& stream) {
    const bool wide = sharedBytes(p, 32) <= static_cast<size_t>(stream.sharedBytes);
    wide ? launchSized<kDim, kTiles, 32>(p, stream) : launchSized<kDim, kTiles, 16>(p, stream);
}

}  // namespace

bool canAttentionDecode(const AttentionParams& p, const Stream& stream) {
    return !p.f32Cache && (p.headDim == 64 || p.headDim == 128) && p.group <= 32 &&
           sharedBytes(p, 16) <= static_cast<size_t>(stream.sharedBytes);
}

int attentionDecodeSplits(const AttentionParams& p, const Stream& stream) {
    // At least one step for each warp of a block, and no more blocks than run at once.
    const int steps = ceilDiv(p.maxContextLength, kWarps * kKvBlockPositions);
    const int room = stream.nSms / (p.nKvHeads * p.nTokens);
    return std::max(1, std::min(steps, room));
}

void launchAttentionDecode(const AttentionParams& p, const Stream& stream) {
    if (p.headDim == 128)
        tilesOf(p) == 1 ? launchTiled<128, 1>(p, stream) : launchTiled<128, 2>(p, stream);
    else
        tilesOf(p) == 1 ? launchTiled<64, 1>(p, stream) : launchTiled<64, 2>(p, stream);
}

}  // namespace dllama::gpu
