#include "gpu/kernels/bulk-copy.cuh"

/// 2 to 32 tokens through a quantised matrix at nearly the cost of one: drafts and parallel chats. Grid: rows / 16;
/// 8 warps share 16 weight rows, each takes every eighth group of 128 columns, and an m16n8k32 product of signed bytes
/// per block of 32 and 8 tokens. Shared memory: the warps' partial sums (8, 16, tokens).
///
/// From 9.0 on, linearFewStaged: the same, with the block's weights brought to shared memory by the copy engine before
/// the predecessor has finished. Of long rows it takes 8, and half of each product is not used.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8, kTileRows = 16;

/// sums[tile] += rows g and g + 8 (upper, lower) x tokens 2t and 2t + 1 of the tile, of one group of columns.
template <DType kType, int kTokenTiles>
__device__ inline void addGroup(const LinearParams& p, const WeightChunk<kType>& upper, const WeightChunk<kType>& lower,
                                int group, float (&sums)[kTokenTiles][4]) {
    const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
    const float4 upperScales = widenScales(upper.scales), lowerScales = widenScales(lower.scales);
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; tile++) {
        // Tokens past the last one repeat it; their sums are not stored.
        const int64_t token = min(tile * 8 + g, p.m - 1);
        const int64_t left = min(tile * 8 + 2 * t, p.m - 1), right = min(tile * 8 + 2 * t + 1, p.m - 1);
        const int8_t* values = p.in.q.values + (token * p.w.groups + group) * kGroup + t * 16;
        const uint4 first = *reinterpret_cast<const uint4*>(values);
        const uint4 second = *reinterpret_cast<const uint4*>(values + 64);
        const float4 ls = *reinterpret_cast<const float4*>(p.in.q.scales + (left * p.w.groups + group) * 4);
        const float4 rs = *reinterpret_cast<const float4*>(p.in.q.scales + (right * p.w.groups + group) * 4);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            uint32_t a[4];
            WeightChunk<kType>::operandA(upper, lower, b, a);
            const uint4 half = b < 2 ? first : second;
            int c[4] = {};
            mmaS8(c, a, b % 2 ? half.z : half.x, b % 2 ? half.w : half.y);
            const float up = component(upperScales, b), low = component(lowerScales, b);
            const float l = component(ls, b), r = component(rs, b);
            sums[tile][0] += static_cast<float>(c[0]) * (up * l);
            sums[tile][1] += static_cast<float>(c[1]) * (up * r);
            sums[tile][2] += static_cast<float>(c[2]) * (low * l);
            sums[tile][3] += static_cast<float>(c[3]) * (low * r);
        }
    }
}

/// The warps' sums become outputs row0 .. row0 + kRows - 1.
template <DType kType, int kRows, int kTokenTiles>
__device__ inline void storeSums(const LinearParams& p, const float (&sums)[kTokenTiles][4],
                                 float (&partial)[kWarps][kRows][kTokenTiles * 8], int row0) {
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, g = tid % 32 / 4, t = tid % 4;
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; tile++)
#pragma unroll
        for (int i = 0; i < kRows / 4; i++) partial[warp][g + i / 2 * 8][tile * 8 + 2 * t + i % 2] = sums[tile][i];
    __syncthreads();
    for (int i = tid; i < kRows * kTokenTiles * 8; i += kWarps * 32) {
        const int token = i / kRows, row = row0 + i % kRows;
        if (token >= p.m || row >= p.w.rows) continue;
        float value = 0.0f;
        for (int w = 0; w < kWarps; w++) value += partial[w][i % kRows][token];
        value = value * WeightChunk<kType>::kFactor + (p.w.bias ? p.w.bias[row] : 0.0f);
        float& out = p.out[int64_t{token} * p.outCols + row];
        out = p.accumulate ? out + value : value;
    }
}

template <DType kType, int kTokenTiles, int kDepth>
__global__ void __launch_bounds__(kWarps * 32) linearFew(LinearParams p) {
    constexpr int kTokens = kTokenTiles * 8;
    __shared__ float partial[kWarps][kTileRows][kTokens];
    letSuccessorStart();
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const int g = lane / 4, t = lane % 4, row0 = static_cast<int>(blockIdx.x) * kTileRows;
    const WeightRow rows[2] = {weightRow<kType>(p.w, min(row0 + g, p.w.rows - 1)),
                               weightRow<kType>(p.w, min(row0 + g + 8, p.w.rows - 1))};
    WeightChunk<kType> ring[kDepth][2];
    const auto fetch = [&](int slot, int group) {
        if (group < p.w.groups)
            for (int r = 0; r < 2; r++) ring[slot][r].load(rows[r].data, rows[r].scales, group, t);
    };
#pragma unroll
    for (int s = 0; s < kDepth; s++) fetch(s, warp + kWarps * s);
    waitForPredecessor();

    float sums[kTokenTiles][4] = {};
    for (int base = warp; base < p.w.groups; base += kWarps * kDepth) {
#pragma unroll
        for (int s = 0; s < kDepth; s++) {
            const int group = base + kWarps * s;
            if (group < p.w.groups) addGroup<kType, kTokenTiles>(p, ring[s][0], ring[s][1], group, sums);
            fetch(s, group + kWarps * kDepth);
        }
    }

    storeSums<kType, kTileRows>(p, sums, partial, row0);
}

template <DType kType, int kRows, int kTokenTiles>
__global__ void __launch_bounds__(kWarps * 32, 3) linearFewStaged(LinearParams p) {
    extern __shared__ __align__(128) uint8_t staged[];
    __shared__ Arrival arrival;
    __shared__ float partial[kWarps][kRows][kTokenTiles * 8];
    using Staged = StagedRows<kType, kRows>;
    letSuccessorStart();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, g = tid % 32 / 4, t = tid % 4;
    const int row0 = static_cast<int>(blockIdx.x) * kRows, groups = p.w.groups;
    if (tid == 0) {
        initArrival(&arrival);
        expectBytes(&arrival, Staged::bytes(groups));
        Staged::ask(staged, p.w, row0, &arrival);
    }
    __syncthreads();
    waitForPredecessor();
    waitArrival(&arrival, 0);
    float sums[kTokenTiles][4] = {};
#pragma unroll 1
    for (int group = warp; group < groups; group += kWarps) {
        const WeightChunk<kType> upper = Staged::chunk(staged, groups, g, group, t);
        WeightChunk<kType> lower{};
        if constexpr (kRows == kTileRows) lower = Staged::chunk(staged, groups, g + 8, group, t);
        addGroup<kType, kTokenTiles>(p, upper, lower, group, sums);
    }
    storeSums<kType, kRows>(p, sums, partial, row0);
}

/// Whether launched: the rows must fill the blocks, and three blocks a multiprocessor.
template <DType kType, int kRows, int kTokenTiles>
bool launchStaged(const LinearParams& p, const Stream& stream) {
    using Staged = StagedRows<kType, kRows>;
    const int bytes = Staged::bytes(p.w.groups);
    if (stream.computeCapability < 90 || p.w.rows % kRows != 0 || bytes > 64 * 1024 || bytes > stream.sharedBytes / 3 ||
        kRows * p.w.groups % 2 != 0)
        return false;
    launch(stream, linearFewStaged<kType, kRows, kTokenTiles>, p.w.rows / kRows, kWarps * 32, bytes, p);
    return true;
}
template <DType kType, int kTokenTiles>
bool launchStaged(const LinearParams& p, const Stream& stream) {
    return launchStaged<kType, kTileRows, kTokenTiles>(p, stream) || launchStaged<kType, 8, kTokenTiles>(p, stream);
}

template <DType kType>
void launchTyped(const LinearParams& p, const Stream& stream) {
    const int grid = ceilDiv(p.w.rows, kTileRows), block = kWarps * 32;
    if (p.m <= 8 ? launchStaged<kType, 1>(p, stream) : p.m <= 16 && launchStaged<kType, 2>(p, stream)) return;
    if (p.m <= 8)
        launch(stream, linearFew<kType, 1, 4>, grid, block, 0, p);
    else if (p.m <= 16)
        launch(stream, linearFew<kType, 2, 2>, grid, block, 0, p);
    else
        launch(stream, linearFew<kType, 4, 2>, grid, block, 0, p);
}

}  // namespace

void launchLinearFew(const LinearParams& p, const Stream& stream) {
    withQuantType(p.w.dtype, [&]<DType kType>() { launchTyped<kType>(p, stream); });
}

}  // namespace dllama::gpu
