#include "gpu/kernels/quant-formats.cuh"

/// Many rows of activations times quantised weights through the f16 tensor cores with f32 sums. A block computes
/// kWarpsM * 64 rows of activations by kWarpsN * 64 outputs, a warp 64 x 64; it walks over the columns in groups of 128
/// with kStages groups under way. Activations come as f16 (launchStageRows), weights stay 4 or 8 bits in shared memory
/// and become f16 in registers: a lane of the layout in kernels.hpp holds exactly the values that it needs as operand
/// B.
///
/// Grid: (row tiles, output tiles), so that neighbouring blocks share weights. Shared memory of a stage: activations
/// (rows, 128) f16 with 16-byte chunks permuted by the row, weights (outputs, 64 or 128 bytes), scales (outputs, 4)
/// f16. With `up` each warp's 64 weight rows are 32 of gate and the same 32 of up, whose product is 32 outputs.
namespace dllama::gpu {

namespace {

constexpr int kWarpTile = 64;

template <DType kType, int kWarpsM, int kWarpsN, int kStages>
struct MatmulShape {
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kRows = kWarpsM * kWarpTile, kOutputs = kWarpsN * kWarpTile;
    static constexpr int kGroupBytes = WeightChunk<kType>::kGroupBytes;
    static constexpr int kActivationBytes = kRows * kGroup * 2;
    static constexpr int kWeightBytes = kOutputs * kGroupBytes;
    static constexpr int kStageBytes = kActivationBytes + kWeightBytes + kOutputs * 8;
    static constexpr int kSharedBytes = kStages * kStageBytes;
};

template <DType kType, int kWarpsM, int kWarpsN, int kStages, bool kGated>
__global__ void __launch_bounds__(32 * kWarpsM * kWarpsN, kWarpsM* kWarpsN <= 4 ? 2 : 1) matmul(MatmulParams p) {
    using Shape = MatmulShape<kType, kWarpsM, kWarpsN, kStages>;
    constexpr int kBytes = Shape::kGroupBytes;
    extern __shared__ __align__(16) uint8_t shared[];
    __shared__ int32_t sourceRows[Shape::kRows];
    const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warpM = warp % kWarpsM, warpN = warp / kWarpsM;
    letSuccessorStart();
    waitForPredecessor();

    ExpertTile tile{0, static_cast<int>(blockIdx.x) * Shape::kRows, 0, 0};
    tile.rows = min(Shape::kRows, p.m - tile.row0);
    if (p.tiles) {
        if (static_cast<int>(blockIdx.x) >= *p.nTiles) return;
        tile = p.tiles[blockIdx.x];
    }
    for (int r = tid; r < Shape::kRows; r += Shape::kThreads) {
        const int row = tile.row0 + min(r, tile.rows - 1);
        sourceRows[r] = p.rowIndex ? p.rowIndex[row] : row;
    }
    __syncthreads();

    // Weight row r of the block: of gate (or the only matrix) or up, and the output it makes.
    constexpr int kNewOutputs = kGated ? Shape::kOutputs / 2 : Shape::kOutputs;
    const int output0 = static_cast<int>(blockIdx.y) * kNewOutputs;
    const auto outputOf = [&](int r) { return kGated ? output0 + r / kWarpTile * 32 + r % 32 : output0 + r; };
    const int groups = p.w.groups;
    const auto fetch = [&](int stage, int group) {
        uint8_t* base = shared + stage * Shape::kStageBytes;
        auto* a = reinterpret_cast<__half*>(base);
#pragma unroll 1
        for (int i = tid; i < Shape::kRows * 16; i += Shape::kThreads) {
            const int row = i / 16, chunk = i % 16;
            copyAsync<16>(a + row * kGroup + ((chunk ^ (row & 7)) * 8),
                          p.a + (int64_t{sourceRows[row]} * groups + group) * kGroup + chunk * 8);
        }
        uint8_t* weights = base + Shape::kActivationBytes;
        constexpr int kChunks = kBytes / 16;
#pragma unroll 1
        for (int i = tid; i < Shape::kOutputs * kChunks; i += Shape::kThreads) {
            const int r = i / kChunks, chunk = i % kChunks;
            const bool up = kGated && r % kWarpTile >= 32;
            const Weights& w = up ? p.up : p.w;
            const int64_t row = min(outputOf(r), p.w.rows - 1);
            const uint8_t* from = w.data + tile.slot * p.dataStride[up] + (row * groups + group) * kBytes + chunk * 16;
            // By planes, so that eight rows of one are conflict-free.
            copyAsync<16>(weights + chunk / 4 * Shape::kOutputs * 64 + r * 64 + chunk % 4 * 16, from);
        }
        uint8_t* scales = weights + Shape::kWeightBytes;
        for (int r = tid; r < Shape::kOutputs; r += Shape::kThreads) {
            const bool up = kGated && r % kWarpTile >= 32;
            const Weights& w = up ? p.up : p.w;
            const int64_t row = min(outputOf(r), p.w.rows - 1);
            copyAsync<8>(scales + r * 8, w.scales + tile.slot * p.scaleStride[up] + (row * groups + group) * 4);
        }
    };

    float sums[4][8][4] = {};  // (16-row tiles, 8-output tiles, accumulator)
    const auto multiply = [&](int stage) {
        const uint8_t* base = shared + stage * Shape::kStageBytes;
        const auto* a = reinterpret_cast<const __half*>(base) + warpM * kWarpTile * kGroup;
        const uint8_t* weights = base + Shape::kActivationBytes + warpN * kWarpTile * 64;
        const uint8_t* scales = base + Shape::kActivationBytes + Shape::kWeightBytes + warpN * kWarpTile * 8;
        constexpr int kPlanes = WeightChunk<kType>::kPlanes;
#pragma unroll
        for (int plane = 0; plane < kPlanes; plane++) {
            uint4 words[8];
#pragma unroll
            for (int n = 0; n < 8; n++)
                words[n] =
                    *reinterpret_cast<const uint4*>(weights + plane * Shape::kOutputs * 64 + (n * 8 + g) * 64 + t * 16);
#pragma unroll
            for (int i = 0; i < 4 / kPlanes; i++) {
                const int block = plane * 2 + i;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t rows[4][4];
#pragma unroll
                    for (int m = 0; m < 4; m++) {
                        const int row = m * 16 + lane % 16, chunk = block * 4 + half * 2 + lane / 16;
                        loadMatrices(rows[m], sharedAddress(a + row * kGroup + ((chunk ^ (row & 7)) * 8)));
                    }
#pragma unroll
                    for (int n = 0; n < 8; n++) {
                        const __half2 scale =
                            __half2half2(*reinterpret_cast<const __half*>(scales + (n * 8 + g) * 8 + block * 2));
                        uint32_t b[2];
                        if (half == 0)
                            WeightChunk<kType>::template widen<0>(words[n], i, scale, b);
                        else
                            WeightChunk<kType>::template widen<1>(words[n], i, scale, b);
#pragma unroll
                        for (int m = 0; m < 4; m++) mmaF16(sums[m][n], rows[m], b[0], b[1]);
                    }
                }
            }
        }
    };

#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
        if (s < groups) fetch(s, s);
        commitCopies();
    }
    int stage = 0, free = kStages - 1;
    for (int group = 0; group < groups; group++) {
        waitCopies<kStages - 2>();
        __syncthreads();
        if (group + kStages - 1 < groups) fetch(free, group + kStages - 1);
        commitCopies();
        multiply(stage);
        stage = stage + 1 == kStages ? 0 : stage + 1;
        free = free + 1 == kStages ? 0 : free + 1;
    }
    waitCopies<0>();

#pragma unroll
    for (int m = 0; m < 4; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = warpM * kWarpTile + m * 16 + g + 8 * r;
            const bool real = row < tile.rows;
            const float scale = p.rowScale[sourceRows[row]];
            const int64_t to = tile.row0 + row;
            if constexpr (kGated) {
                float hidden[4][2];
                float most = 0.0f;
                const int first = output0 + warpN * 32;
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const int output = first + n * 8 + 2 * t + i;
                        float gate = sums[m][n][2 * r + i] * scale, up = sums[m][n + 4][2 * r + i] * scale;
                        if (output < p.w.rows) {
                            if (p.w.bias) gate += p.w.bias[output];
                            if (p.up.bias) up += p.up.bias[output];
                        }
                        hidden[n][i] = output < p.w.rows ? activate(p.act, gate) * up : 0.0f;
                        most = fmaxf(most, fabsf(hidden[n][i]));
                    }
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
                most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
                if (!real || first >= p.w.rows) continue;
                const BlockScale by = blockScale(most);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const int output = first + n * 8 + 2 * t;
                    for (int i = 0; i < 2; i++)
                        if (p.out && output + i < p.w.rows) p.out[to * p.outCols + output + i] = hidden[n][i];
                    if (p.q.values)
                        *reinterpret_cast<char2*>(p.q.values + to * p.q.groups * kGroup + quantOffset(output)) =
                            make_char2(quantValue(hidden[n][0], by.inverse), quantValue(hidden[n][1], by.inverse));
                }
                if (p.q.values && t == 0) p.q.scales[to * p.q.groups * 4 + first / 32] = by.stored;
            } else {
                if (!real) continue;
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    const int output = output0 + warpN * kWarpTile + n * 8 + 2 * t;
                    for (int i = 0; i < 2; i++) {
                        if (output + i >= p.w.rows) continue;
                        float& out = p.out[to * p.outCols + output + i];
                        const float value = sums[m][n][2 * r + i] * scale + (p.w.bias ? p.w.bias[output + i] : 0.0f);
                        out = p.accumulate ? out + value : value;
                    }
                }
            }
        }
    }
}

/// What a device can hold: large blocks of 8 warps, blocks of 4 for few rows or experts, small ones elsewhere.
template <DType kType>
void launchTyped(const MatmulParams& p, const Stream& stream) {
    using Large = MatmulShape<kType, 2, 4, 3>;
    using Middle = MatmulShape<kType, 1, 4, 3>;
    using Small = MatmulShape<kType, 1, 2, 2>;
    const bool gated = p.up.data != nullptr;
    const auto start = [&](auto shape, auto plain, auto withUp) {
        using Shape = decltype(shape);
        const int rowTiles = p.tiles ? p.maxTiles : ceilDiv(p.m, Shape::kRows);
        const dim3 grid(rowTiles, ceilDiv(p.w.rows, gated ? Shape::kOutputs / 2 : Shape::kOutputs));
        launch(stream, gated ? withUp : plain, grid, Shape::kThreads, Shape::kSharedBytes, p);
    };
    const bool roomy = Large::kSharedBytes <= stream.sharedBytes;
    if (roomy && !p.tiles && p.m > kWarpTile)
        start(Large{}, matmul<kType, 2, 4, 3, false>, matmul<kType, 2, 4, 3, true>);
    else if (roomy)
        start(Middle{}, matmul<kType, 1, 4, 3, false>, matmul<kType, 1, 4, 3, true>);
    else
        start(Small{}, matmul<kType, 1, 2, 2, false>, matmul<kType, 1, 2, 2, true>);
}

}  // namespace

void launchMatmul(const MatmulParams& p, const Stream& stream) {
    withQuantType(p.w.dtype, [&]<DType kType>() { launchTyped<kType>(p, stream); });
}

bool canMatmul(DType dtype, const Stream& stream) {
    return isQuantized(dtype) && withQuantType(dtype, [&]<DType kType>() {
               return MatmulShape<kType, 1, 2, 2>::kSharedBytes <= stream.sharedBytes;
           });
}

}  // namespace dllama::gpu
