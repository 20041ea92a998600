#include "gpu/kernels/row-tiles.cuh"

/// Routed experts of several tokens: every chosen expert's weights are read once for all tokens that chose it (tiles:
/// row-tiles.cuh). Each block sorts the (token, k) pairs by expert for itself, in the same way, so no list goes through
/// memory and no launch lies between router and experts.
///
/// expertsRowsUp: two blocks of 8 warps a multiprocessor. Four warps share a chunk of 32 hidden values of one expert:
/// each multiplies 8 rows of gate and the same 8 of up, then the four quantise 32 values a token. Shared memory: the
/// list, and hidden values on their way (2 teams, 2 turns, tokens, 32).
/// expertsRowsDown: the same grid; a warp has tiles of 16 outputs that follow each other. Shared memory: the list.
/// mixPairs: grid (columns / 1024, tokens), 256 threads of four columns; reads topK rows of y and one of out.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kTeamWarps = 4, kTeams = kWarps / kTeamWarps;
constexpr int kTokenTiles = 2, kEntryPairs = kTokenTiles * 8;
/// One group less than where a lane has one row of sums: registers are short.
template <DType kType>
constexpr int kDepth = WeightChunk<kType>::kDepth > 3 ? 3 : WeightChunk<kType>::kDepth;

/// The chosen experts that this rank has, each with the pairs that chose it, at most kEntryPairs an entry.
struct ExpertList {
    int nEntries;
    int slot[kMaxRowPairs], first[kMaxRowPairs], count[kMaxRowPairs];
    int pairs[kMaxRowPairs];  // of the entries, one behind the other
    int counts[kMaxExperts], places[kMaxExperts];
    int keys[kMaxRowPairs], ranks[kMaxRowPairs];
};

/// Fills the list. All threads of the block; the pairs of an expert keep their order.
__device__ inline void sortPairs(const ExpertsDecodeParams& p, ExpertList& list) {
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, nPairs = p.nTokens * p.topK;
    for (int i = tid; i < nPairs; i += kThreads) list.keys[i] = p.w.slots[__ldcg(&p.experts[i])];
    for (int i = tid; i < p.w.nExperts; i += kThreads) list.counts[i] = 0;
    __syncthreads();
    if (tid < 32) {
        for (int base = 0; base < nPairs; base += 32) {
            const int i = base + lane, key = i < nPairs ? list.keys[i] : -1;
            const unsigned same = __match_any_sync(~0u, key);
            const int before = __popc(same & ((1u << lane) - 1)), earlier = key >= 0 ? list.counts[key] : 0;
            __syncwarp();
            if (key >= 0) {
                list.ranks[i] = earlier + before;
                if (before == 0) list.counts[key] = earlier + __popc(same);
            }
            __syncwarp();
        }
        // Pairs and entries before each expert, packed.
        int pairs = 0, entries = 0;
        for (int base = 0; base < p.w.nExperts; base += 32) {
            const int e = base + lane, count = e < p.w.nExperts ? list.counts[e] : 0;
            const int own = count | (count + kEntryPairs - 1) / kEntryPairs << 16;
            int sum = own;
#pragma unroll
            for (int d = 1; d < 32; d *= 2) {
                const int other = __shfl_up_sync(~0u, sum, d);
                if (lane >= d) sum += other;
            }
            const int firstPair = pairs + ((sum - own) & 0xffff), firstEntry = entries + ((sum - own) >> 16);
            if (count > 0) list.places[e] = firstPair;
            for (int at = 0; at < count; at += kEntryPairs) {
                const int entry = firstEntry + at / kEntryPairs;
                list.slot[entry] = e;
                list.first[entry] = firstPair + at;
                list.count[entry] = min(kEntryPairs, count - at);
            }
            const int all = __shfl_sync(~0u, sum, 31);
            pairs += all & 0xffff;
            entries += all >> 16;
        }
        if (lane == 0) list.nEntries = entries;
    }
    __syncthreads();
    for (int i = tid; i < nPairs; i += kThreads)
        if (list.keys[i] >= 0) list.pairs[list.places[list.keys[i]] + list.ranks[i]] = i;
    __syncthreads();
}

/// Which activation rows a lane of a tile works with.
struct TilePairs {
    int rows[kTokenTiles];          // row g of each token tile
    int scaleRows[kTokenTiles][2];  // tokens 2t and 2t + 1
    int count;

    /// rowOf(pair): its row of the activations. Pairs past the last one repeat it; their sums are not stored.
    template <typename RowOf>
    __device__ TilePairs(const ExpertList& list, int entry, int g, int t, const RowOf& rowOf)
        : count(list.count[entry]) {
        const int* pairs = list.pairs + list.first[entry];
#pragma unroll
        for (int n = 0; n < kTokenTiles; n++) {
            rows[n] = rowOf(pairs[min(n * 8 + g, count - 1)]);
#pragma unroll
            for (int i = 0; i < 2; i++) scaleRows[n][i] = rowOf(pairs[min(n * 8 + 2 * t + i, count - 1)]);
        }
    }
};

template <DType kType>
__device__ inline void addGroupOf(const TilePairs& pairs, const QuantRows& in, int group,
                                  const WeightChunk<kType>& upper, const WeightChunk<kType>& lower,
                                  float (&sums)[kTokenTiles][4]) {
    const int t = static_cast<int>(threadIdx.x % 4);
    addGroup<kType, kTokenTiles>(
        upper, lower, [&](int n) { return in.values + (int64_t{pairs.rows[n]} * in.groups + group) * kGroup + t * 16; },
        [&](int n, int i) {
            return *reinterpret_cast<const float4*>(in.scales +
                                                    (int64_t{pairs.scaleRows[n][i]} * in.groups + group) * 4);
        },
        pairs.count > 8 ? 2 : 1, sums);
}

template <DType kType>
__global__ void __launch_bounds__(kThreads, 2) expertsRowsUp(ExpertsDecodeParams p) {
    extern __shared__ __align__(16) uint8_t shared[];
    auto& list = *reinterpret_cast<ExpertList*>(shared);
    auto* hidden = reinterpret_cast<float*>(shared + sizeof(ExpertList));
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int team = warp / kTeamWarps, member = warp % kTeamWarps;
    waitForPredecessor();
    // In this order: what expertsRowsDown finds when it starts, the router has finished.
    letSuccessorStart();
    sortPairs(p, list);

    const int perExpert = (p.w.gate.rows + 31) / 32, nChunks = list.nEntries * perExpert;
    const int first = static_cast<int>(blockIdx.x) * kTeams + team, stride = static_cast<int>(gridDim.x) * kTeams;
    const int mine = first < nChunks ? (nChunks - first + stride - 1) / stride : 0;
    const auto rowsOf = [&](int i) {
        const int chunk = first + i * stride;
        const int64_t slot = list.slot[chunk / perExpert];
        const int64_t row = min(chunk % perExpert * 32 + member * 8 + g, p.w.gate.rows - 1) * int64_t{p.w.gate.groups};
        constexpr int kBytes = WeightChunk<kType>::kGroupBytes;
        return TileRows{p.w.gate.data + slot * p.w.dataStride[0] + row * kBytes,
                        p.w.up.data + slot * p.w.dataStride[1] + row * kBytes,
                        p.w.gate.scales + slot * p.w.scaleStride[0] + row * 4,
                        p.w.up.scales + slot * p.w.scaleStride[1] + row * 4};
    };
    const auto pairsOf = [&](int i) {
        return TilePairs(list, min(first + i * stride, nChunks - 1) / perExpert, g, t,
                         [&](int pair) { return pair / p.topK; });
    };
    if (mine == 0) return;
    TilePairs pairs = pairsOf(0);
    float sums[kTokenTiles][4] = {};
    walkTiles<kType, kDepth<kType>>(
        mine, 0, p.w.gate.groups, rowsOf, [] {},
        [&](const WeightChunk<kType>& gate, const WeightChunk<kType>& up, int group, int) {
            addGroupOf<kType>(pairs, p.in.q, group, gate, up, sums);
        },
        [&](int i) {
            float* tile = hidden + (team * 2 + i % 2) * kEntryPairs * 32;
#pragma unroll
            for (int n = 0; n < kTokenTiles; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float gate = sums[n][j] * WeightChunk<kType>::kFactor;
                    const float up = sums[n][2 + j] * WeightChunk<kType>::kFactor;
                    tile[(n * 8 + 2 * t + j) * 32 + member * 8 + g] = activate(Activation::Silu, gate) * up;
                    sums[n][j] = sums[n][2 + j] = 0.0f;
                }
            asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kTeamWarps * 32) : "memory");
            const int chunk = first + i * stride, entry = chunk / perExpert, col = chunk % perExpert * 32 + lane;
            for (int k = member; k < list.count[entry]; k += kTeamWarps)
                quantizeWarp(p.hidden.q, list.pairs[list.first[entry] + k], col,
                             col < p.w.gate.rows ? tile[k * 32 + lane] : 0.0f);
            pairs = pairsOf(i + 1);
        });
}

template <DType kType>
__global__ void __launch_bounds__(kThreads, 2) expertsRowsDown(ExpertsDecodeParams p) {
    extern __shared__ __align__(16) uint8_t shared[];
    auto& list = *reinterpret_cast<ExpertList*>(shared);
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, g = lane / 4, t = lane % 4;
    letSuccessorStart();
    sortPairs(p, list);
    const Weights& down = p.w.down;
    const int perExpert = (down.rows + kTileRows - 1) / kTileRows, nTiles = list.nEntries * perExpert;
    const int warp = static_cast<int>(blockIdx.x) * kWarps + tid / 32, nWarps = static_cast<int>(gridDim.x) * kWarps;
    const int first = static_cast<int>(int64_t{nTiles} * warp / nWarps);
    const int mine = static_cast<int>(int64_t{nTiles} * (warp + 1) / nWarps) - first;
    const auto rowsOf = [&](int i) {
        const int tile = first + i;
        const int64_t slot = list.slot[tile / perExpert];
        const int row0 = tile % perExpert * kTileRows;
        const int64_t upper = min(row0 + g, down.rows - 1) * int64_t{down.groups},
                      lower = min(row0 + g + 8, down.rows - 1) * int64_t{down.groups};
        const uint8_t* data = down.data + slot * p.w.dataStride[2];
        const __half* scales = down.scales + slot * p.w.scaleStride[2];
        constexpr int kBytes = WeightChunk<kType>::kGroupBytes;
        return TileRows{data + upper * kBytes, data + lower * kBytes, scales + upper * 4, scales + lower * 4};
    };
    const auto pairsOf = [&](int i) {
        return TilePairs(list, min(first + i, nTiles - 1) / perExpert, g, t, [](int pair) { return pair; });
    };
    if (nTiles == 0) return waitForPredecessor();
    TilePairs pairs = pairsOf(0);
    float sums[kTokenTiles][4] = {};
    walkTiles<kType, kDepth<kType>>(
        mine, 0, down.groups, rowsOf, [] { waitForPredecessor(); },
        [&](const WeightChunk<kType>& upper, const WeightChunk<kType>& lower, int group, int) {
            addGroupOf<kType>(pairs, p.hidden.q, group, upper, lower, sums);
        },
        [&](int i) {
            const int tile = first + i, entry = tile / perExpert, row0 = tile % perExpert * kTileRows;
#pragma unroll
            for (int n = 0; n < kTokenTiles; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int k = n * 8 + 2 * t + j % 2, row = row0 + g + j / 2 * 8;
                    if (k < pairs.count && row < down.rows)
                        p.pairOut[int64_t{list.pairs[list.first[entry] + k]} * down.rows + row] =
                            sums[n][j] * WeightChunk<kType>::kFactor;
                    sums[n][j] = 0.0f;
                }
            pairs = pairsOf(i + 1);
        });
}

constexpr int kMixThreads = 256;

__global__ void __launch_bounds__(kMixThreads) mixPairs(ExpertsDecodeParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int token = static_cast<int>(blockIdx.y), rows = p.w.down.rows;
    const int col = (static_cast<int>(blockIdx.x) * kMixThreads + static_cast<int>(threadIdx.x)) * 4;
    if (col >= rows) return;
    float* out = p.out + int64_t{token} * p.outCols + col;
    const int n = min(4, rows - col);
    float sum[4] = {};
    for (int k = 0; k < p.topK; k++) {
        const int pair = token * p.topK + k;
        if (p.w.slots[p.experts[pair]] < 0) continue;
        const float* y = p.pairOut + int64_t{pair} * rows + col;
        for (int j = 0; j < n; j++) sum[j] += p.weights[pair] * y[j];
    }
    for (int j = 0; j < n; j++) out[j] += sum[j];
}

}  // namespace

bool canExpertsRows(const ExpertsDecodeParams& p, const Stream& stream) {
    return isQuantized(p.w.gate.dtype) && p.nTokens * p.topK <= kMaxRowPairs &&
           sizeof(ExpertList) + kTeams * 2 * kEntryPairs * 32 * sizeof(float) <= size_t(stream.sharedBytes) / 2;
}

void launchExpertsRows(const ExpertsDecodeParams& p, const Stream& stream) {
    const unsigned grid = 2 * stream.nSms;
    constexpr size_t kHidden = kTeams * 2 * kEntryPairs * 32 * sizeof(float);
    withQuantType(p.w.gate.dtype, [&]<DType kType>() {
        launch(stream, expertsRowsUp<kType>, grid, kThreads, sizeof(ExpertList) + kHidden, p);
        launch(stream, expertsRowsDown<kType>, grid, kThreads, sizeof(ExpertList), p);
    });
    launch(stream, mixPairs, dim3(ceilDiv(p.w.down.rows, kMixThreads * 4), p.nTokens), kMixThreads, 0, p);
}

}  // namespace dllama::gpu
