#include "gpu/kernels/row-tiles.cuh"

/// 2 to 32 tokens through a quantised matrix, or through gate, up and activation, at nearly the cost of one: parallel
/// sequences and drafts (tiles: row-tiles.cuh).
///
/// Grid: clusters of `cluster` blocks of 8 warps, two blocks a multiprocessor. A cluster has every nClusters-th chunk
/// of the outputs (a tile, or the four whose 8 rows of gate and 8 of up make 32 outputs), each of its blocks a slice of
/// the columns, and `split` warps a part of that slice. So a block needs its slice of the activations only, which stays
/// in shared memory for all its tiles. At the end the blocks add up their partial sums in each other's shared memory,
/// in the order of blocks and warps.
///
/// Shared memory: values (tokens, slice * 128) and scales (tokens, slice * 4) of the activations, rows padded so that
/// eight of them do not meet in a bank; partial sums (tiles of the cluster, split, tokens, 16).
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
/// Of a token's 16 partial sums: rows of the tile 20 apart are conflict-free.
constexpr int kPartialPitch = 20;

__host__ __device__ inline int valuePitch(int slice) {
    return slice * kGroup + 64;
}
__host__ __device__ inline int scalePitch(int slice) {
    return (slice | 1) * 4;
}

struct Params {
    LinearRowsParams op;
    int cluster, split, slice, nChunks;
};

template <DType kType, int kTokenTiles, bool kGated>
__global__ void __launch_bounds__(kThreads, 2) linearRows(Params p) {
    extern __shared__ __align__(16) uint8_t shared[];
    constexpr int kTokens = kTokenTiles * 8, kChunkTiles = kGated ? 4 : 1;
    // Registers hold either sums or groups under way.
    constexpr int kRoom = 5 - (kTokenTiles == 4 ? 3 : kTokenTiles), kMost = WeightChunk<kType>::kDepth;
    constexpr int kDepth = kRoom < kMost ? kRoom : kMost;
    letSuccessorStart();
    const LinearRowsParams& op = p.op;
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int rank = static_cast<int>(blockIdx.x) % p.cluster, cluster = static_cast<int>(blockIdx.x) / p.cluster;
    const int nClusters = static_cast<int>(gridDim.x) / p.cluster;
    const int firstGroup = rank * p.slice, nGroups = min(p.slice, op.w.groups - firstGroup);
    auto* values = reinterpret_cast<int8_t*>(shared);
    auto* scales = reinterpret_cast<float*>(values + kTokens * valuePitch(p.slice));
    float* partial = scales + kTokens * scalePitch(p.slice);

    // This cluster's tiles, of which this warp has every teams-th, and its part of the slice.
    const int nTiles = (p.nChunks - cluster + nClusters - 1) / nClusters * kChunkTiles;
    const int teams = kWarps / p.split, team = warp / p.split, part = warp % p.split;
    const int ofPart = (nGroups + p.split - 1) / p.split;
    const int begin = min(part * ofPart, nGroups), end = min(begin + ofPart, nGroups);
    const int mine = team < teams && team < nTiles ? (nTiles - team + teams - 1) / teams : 0;
    const auto firstRow = [&](int tile) {
        const int chunk = cluster + nClusters * (tile / kChunkTiles);
        return kGated ? chunk * 32 + tile % 4 * 8 : chunk * kTileRows;
    };
    const auto rowsOf = [&](int i) {
        const int row0 = firstRow(team + i * teams);
        const Weights& second = kGated ? op.up : op.w;
        const int64_t upper = min(row0 + g, op.w.rows - 1), lower = min(row0 + g + (kGated ? 0 : 8), op.w.rows - 1);
        constexpr int kBytes = WeightChunk<kType>::kGroupBytes;
        const int64_t u = upper * op.w.groups + firstGroup, l = lower * op.w.groups + firstGroup;
        return TileRows{op.w.data + u * kBytes, second.data + l * kBytes, op.w.scales + u * 4, second.scales + l * 4};
    };
    const auto stageActivations = [&] {
        waitForPredecessor();
        for (int token = warp; token < op.m; token += kWarps) {
            const int64_t from = int64_t{token} * op.w.groups + firstGroup;
            for (int i = lane; i < nGroups * (kGroup / 16); i += 32)
                copyAsync<16>(values + token * valuePitch(p.slice) + i * 16, op.in.values + from * kGroup + i * 16);
            for (int i = lane; i < nGroups; i += 32)
                copyAsync<16>(scales + token * scalePitch(p.slice) + i * 4, op.in.scales + (from + i) * 4);
        }
        commitCopies();
        waitCopies<0>();
        __syncthreads();
    };

    float sums[kTokenTiles][4] = {};
    const auto add = [&](const WeightChunk<kType>& upper, const WeightChunk<kType>& lower, int group, int) {
        const int8_t* value = values + g * valuePitch(p.slice) + group * kGroup + t * 16;
        const float* scale = scales + 2 * t * scalePitch(p.slice) + group * 4;
        addGroup<kType, kTokenTiles>(
            upper, lower, [&](int n) { return value + n * 8 * valuePitch(p.slice); },
            [&](int n, int i) { return *reinterpret_cast<const float4*>(scale + (n * 8 + i) * scalePitch(p.slice)); },
            (op.m + 7) / 8, sums);
    };
    const auto finish = [&](int i) {
        float* to = partial + ((team + i * teams) * p.split + part) * kTokens * kPartialPitch;
#pragma unroll
        for (int n = 0; n < kTokenTiles; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                to[(n * 8 + 2 * t + j % 2) * kPartialPitch + g + j / 2 * 8] = sums[n][j];
                sums[n][j] = 0.0f;
            }
    };
    if (begin < end) {
        walkTiles<kType, kDepth>(mine, begin, end, rowsOf, stageActivations, add, finish);
    } else {
        stageActivations();
        for (int i = 0; i < mine; i++) finish(i);
    }
    if (p.cluster > 1)
        syncCluster();
    else
        __syncthreads();

    // Every block adds up a part of the outputs.
    const auto total = [&](int tile, int token, int row) {
        float sum = 0.0f;
        for (int block = 0; block < p.cluster; block++)
            for (int s = 0; s < p.split; s++) {
                const float* from = partial + ((tile * p.split + s) * kTokens + token) * kPartialPitch + row;
                sum += p.cluster > 1 ? loadFromBlock(from, block) : *from;
            }
        return sum * WeightChunk<kType>::kFactor;
    };
    if constexpr (kGated) {
        const int units = nTiles / 4 * op.m;
        for (int i = rank * kWarps + warp; i < units; i += p.cluster * kWarps) {
            const int chunk = i / op.m, token = i % op.m, tile = chunk * 4 + lane / 8;
            const int col = firstRow(chunk * 4) + lane, row = min(col, op.w.rows - 1);
            const float gate = total(tile, token, lane % 8) + (op.w.bias ? op.w.bias[row] : 0.0f);
            const float up = total(tile, token, lane % 8 + 8) + (op.up.bias ? op.up.bias[row] : 0.0f);
            const float hidden = col < op.w.rows ? activate(op.act, gate) * up : 0.0f;
            if (col < op.w.rows) op.out[int64_t{token} * op.outCols + col] = hidden;
            if (op.q.values) quantizeWarp(op.q, token, col, hidden);
        }
    } else {
        const int units = nTiles * kTileRows * op.m;
        for (int i = rank * kThreads + tid; i < units; i += p.cluster * kThreads) {
            const int tile = i / (kTileRows * op.m), token = i / kTileRows % op.m;
            const int row = firstRow(tile) + i % kTileRows;
            const float value = total(tile, token, i % kTileRows);
            if (row >= op.w.rows) continue;
            float& out = op.out[int64_t{token} * op.outCols + row];
            const float biased = value + (op.w.bias ? op.w.bias[row] : 0.0f);
            out = op.accumulate ? out + biased : biased;
        }
    }
    if (p.cluster > 1) syncCluster();  // no block leaves while others read its memory
}

int tokenTilesOf(int m) {
    return m <= 8 ? 1 : m <= 16 ? 2 : 4;
}

/// How the work is cut: of what fits into half a multiprocessor's memory, what lets the slowest block read the least.
/// cluster 0: nothing fits.
struct Cut {
    Params p;
    int clusters = 0;
    size_t bytes = 0;
};
Cut cutFor(const LinearRowsParams& op, const Stream& stream) {
    const bool gated = op.up.data != nullptr;
    const int tokens = 8 * tokenTilesOf(op.m), chunkTiles = gated ? 4 : 1;
    const int nChunks = ceilDiv(op.w.rows, gated ? 32 : kTileRows), groups = op.w.groups;
    Cut best;
    double least = 0.0;
    for (int cluster = 1; cluster <= (stream.computeCapability >= 90 ? 8 : 1); cluster *= 2) {
        if (cluster > groups) break;
        const int slice = ceilDiv(groups, cluster);
        if (slice * (cluster - 1) >= groups) continue;
        // Clusters of 8 do not fill every group of multiprocessors.
        const int room = 2 * stream.nSms / cluster - (cluster == 8 ? 1 : 0);
        const int clusters = room < nChunks ? room : nChunks;
        const int nTiles = ceilDiv(nChunks, clusters) * chunkTiles;
        int split = 1;
        while (split * 2 * nTiles <= kWarps && split * 2 <= slice) split *= 2;
        const size_t bytes = size_t(tokens) * (valuePitch(slice) + scalePitch(slice) * 4) +
                             size_t(nTiles) * split * tokens * kPartialPitch * 4;
        if (bytes > size_t(stream.sharedBytes - 1024) / 2) continue;
        // Bytes of weights of a block, and of its activations, which come from the L2 cache.
        const double weights = static_cast<double>(nTiles) * kTileRows * slice * 72;
        const double cost = weights + 0.5 * op.m * slice * 144;
        if (best.clusters == 0 || cost < 0.97 * least) {
            least = cost;
            best = {{op, cluster, split, slice, nChunks}, clusters, bytes};
        }
    }
    return best;
}

template <DType kType, int kTokenTiles>
void start(const Cut& cut, const Stream& stream) {
    launch(stream, cut.p.op.up.data ? linearRows<kType, kTokenTiles, true> : linearRows<kType, kTokenTiles, false>,
           cut.clusters * cut.p.cluster, kThreads, cut.bytes, cut.p, cut.p.cluster);
}

}  // namespace

bool canLinearRows(const LinearRowsParams& p, const Stream& stream) {
    return p.m <= kMaxFewRows && cutFor(p, stream).clusters > 0;
}

void launchLinearRows(const LinearRowsParams& p, const Stream& stream) {
    const Cut cut = cutFor(p, stream);
    withQuantType(p.w.dtype, [&]<DType kType>() {
        switch (tokenTilesOf(p.m)) {
            case 1:
                return start<kType, 1>(cut, stream);
            case 2:
                return start<kType, 2>(cut, stream);
            default:
                return start<kType, 4>(cut, stream);
        }
    });
}

}  // namespace dllama::gpu
