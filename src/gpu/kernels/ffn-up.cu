#include "gpu/kernels/quant-dot.cuh"

/// Gate, up, activation and quantisation of one token. Grid: outputs / 32, for a block makes one Q80 block of `out`;
/// its warps take the 32 outputs in turn. Large matrices use 8 warps of 4 outputs, small ones 32 warps of one, so that
/// a small grid still keeps enough loads under way.
namespace dllama::gpu {

namespace {

template <DType kType, int kWarps, int kDepth>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 8 ? 4 : 1) ffnUp(FfnUpParams p) {
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

template <DType kType>
void launchTyped(const FfnUpParams& p, const Stream& stream) {
    const int grid = ceilDiv(p.gate.rows, 32);
    if (grid < 2 * stream.nSms)
        launch(stream, ffnUp<kType, 32, 2>, grid, 32 * 32, 0, p);
    else
        launch(stream, ffnUp<kType, 8, 2>, grid, 8 * 32, 0, p);
}

}  // namespace

void launchFfnUp(const FfnUpParams& p, const Stream& stream) {
    if (p.gate.dtype == DType::Q40)
        launchTyped<DType::Q40>(p, stream);
    else
        launchTyped<DType::Q80>(p, stream);
}

}  // namespace dllama::gpu
