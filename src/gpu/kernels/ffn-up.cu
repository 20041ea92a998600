#include "gpu/kernels/bulk-copy.cuh"

/// Gate, up, activation and quantisation of one token. Grid: outputs / 32, for a block makes one Q80 block of `out`;
/// its warps take the 32 outputs in turn. Large matrices use 8 warps of 4 outputs, small ones 16 warps of two or 32 of
/// one, so that a small grid still keeps enough loads under way.
///
/// From 9.0 on, ffnUpStaged: the same grid, 8 warps; four rows of gate and four of up are a stretch that the copy
/// engine brings, kStages of them under way. Four warps share the rows of gate, four those of up, and each takes a
/// quarter of the columns. Shared memory: the stretches.
namespace dllama::gpu {

namespace {

template <DType kType, int kWarps, int kDepth>
__global__ void __launch_bounds__(kWarps * 32, 32 / kWarps) ffnUp(FfnUpParams p) {
    __shared__ float hidden[32];
    letSuccessorStart();
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const int out0 = static_cast<int>(blockIdx.x) * 32;
#pragma unroll 1
    for (int i = warp; i < 32; i += kWarps) {
        const int row = min(out0 + i, p.gate.rows - 1);
        const WeightRow rows[2] = {weightRow<kType>(p.gate, row), weightRow<kType>(p.up, row)};
        float sums[2];
        dotRows<kType, 2, kDepth>(rows, p.gate.groups, p.in.q.values, p.in.q.scales, sums,
                                  [] { waitForPredecessor(); });
        if (lane != 0) continue;
        const float gate = sums[0] + (p.gate.bias ? p.gate.bias[row] : 0.0f);
        const float up = sums[1] + (p.up.bias ? p.up.bias[row] : 0.0f);
        hidden[i] = out0 + i < p.gate.rows ? activate(p.act, gate) * up : 0.0f;
    }
    __syncthreads();
    if (warp != 0) return;
    const int col = out0 + lane;
    if (col < p.gate.rows) p.out.f32[col] = hidden[lane];
    if (p.out.q.values) quantizeWarp(p.out.q, 0, col, hidden[lane]);
}

constexpr int kStages = 3, kStretchRows = 4, kStagedWarps = 8;

template <DType kType>
__global__ void __launch_bounds__(kStagedWarps * 32, 4) ffnUpStaged(FfnUpParams p) {
    extern __shared__ __align__(128) uint8_t staged[];  // (kStages, gate and up)
    __shared__ Arrival arrivals[kStages];
    __shared__ __align__(16) float parts[2][32][4];  // of gate and up: each output's quarters
    using Staged = StagedRows<kType, kStretchRows>;
    constexpr int kStretches = 32 / kStretchRows;
    letSuccessorStart();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
    const int which = warp / 4, quarter = warp % 4;
    const int out0 = static_cast<int>(blockIdx.x) * 32, groups = p.gate.groups, bytes = Staged::bytes(groups);
    const auto ask = [&](int stretch) {
        const int stage = stretch % kStages, row0 = out0 + stretch * kStretchRows;
        expectBytes(&arrivals[stage], 2 * bytes);
        Staged::ask(staged + 2 * stage * bytes, p.gate, row0, &arrivals[stage]);
        Staged::ask(staged + (2 * stage + 1) * bytes, p.up, row0, &arrivals[stage]);
    };
    if (tid == 0) {
        for (Arrival& arrival : arrivals) initArrival(&arrival);
#pragma unroll 1
        for (int i = 0; i < kStages; i++) ask(i);
    }
    __syncthreads();
    waitForPredecessor();
#pragma unroll 1
    for (int i = 0; i < kStretches; i++) {
        const int stage = i % kStages;
        waitArrival(&arrivals[stage], i / kStages);
        float sums[kStretchRows] = {};
        Staged::dot(staged + (2 * stage + which) * bytes, groups, quarter * 8, 32, p.in.q, sums);
        const float sum = sumRows(sums);
        constexpr int kLanes = 32 / kStretchRows;
        if (lane % kLanes == 0) parts[which][i * kStretchRows + lane / kLanes][quarter] = sum;
        __syncthreads();
        if (tid == 0 && i + kStages < kStretches) ask(i + kStages);
    }
    if (warp != 0) return;
    const int row = out0 + lane;
    const auto total = [&](int matrix, const float* bias) {
        const float4 q = *reinterpret_cast<const float4*>(parts[matrix][lane]);
        return (q.x + q.y + q.z + q.w) * WeightChunk<kType>::kFactor + (bias ? bias[row] : 0.0f);
    };
    const float hidden = activate(p.act, total(0, p.gate.bias)) * total(1, p.up.bias);
    p.out.f32[row] = hidden;
    if (p.out.q.values) quantizeWarp(p.out.q, 0, row, hidden);
}

template <DType kType>
void launchTyped(const FfnUpParams& p, const Stream& stream) {
    const int grid = ceilDiv(p.gate.rows, 32);
    const int bytes = 2 * kStages * StagedRows<kType, kStretchRows>::bytes(p.gate.groups);
    if (stream.computeCapability >= 90 && p.gate.rows % 32 == 0 && bytes <= 110 * 1024 && grid >= 2 * stream.nSms)
        return launch(stream, ffnUpStaged<kType>, grid, kStagedWarps * 32, bytes, p);
    if (grid <= stream.nSms)
        launch(stream, ffnUp<kType, 32, 2>, grid, 32 * 32, 0, p);
    else if (grid < 2 * stream.nSms)
        launch(stream, ffnUp<kType, 16, 2>, grid, 16 * 32, 0, p);
    else
        launch(stream, ffnUp<kType, 8, 2>, grid, 8 * 32, 0, p);
}

}  // namespace

void launchFfnUp(const FfnUpParams& p, const Stream& stream) {
    withQuantType(p.gate.dtype, [&]<DType kType>() { launchTyped<kType>(p, stream); });
}

}  // namespace dllama::gpu
