#include "gpu/kernels/quant-dot.cuh"

/// One token through a quantised matrix. Grid: rows / 8; 128 threads, each warp two rows, no shared memory. Each weight
/// byte is read once, the activations from L1. The first weights are requested before the predecessor has finished.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 4, kRowsOfWarp = 2, kDepth = 4;

template <DType kType>
__global__ void __launch_bounds__(kWarps * 32) linear(LinearParams p) {
    letSuccessorStart();
    const int warp = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
    const int row0 = warp * kRowsOfWarp, lane = static_cast<int>(threadIdx.x % 32);
    WeightRow rows[kRowsOfWarp];
    for (int r = 0; r < kRowsOfWarp; r++) rows[r] = weightRow<kType>(p.w, min(row0 + r, p.w.rows - 1));
    float sums[kRowsOfWarp];
    dotRows<kType, kRowsOfWarp, kDepth>(rows, p.w.groups, p.in.q.values, p.in.q.scales, sums,
                                        [] { waitForPredecessor(); });
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; r++) {
        const int row = row0 + r;
        if (lane != r || row >= p.w.rows) continue;
        float value = sums[r] + (p.w.bias ? p.w.bias[row] : 0.0f);
        if (p.accumulate) value += p.out[row];
        p.out[row] = value;
    }
}

}  // namespace

void launchLinear(const LinearParams& p, const Stream& stream) {
    const int grid = ceilDiv(p.w.rows, kWarps * kRowsOfWarp);
    launch(stream, p.w.dtype == DType::Q40 ? linear<DType::Q40> : linear<DType::Q80>, grid, kWarps * 32, 0, p);
}

}  // namespace dllama::gpu
