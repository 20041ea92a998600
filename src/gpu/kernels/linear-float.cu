#include "gpu/kernels/float-dot.cuh"

/// F32, F16 and BF16 matrices. Grid: (rows / 8, tokens / 8); a warp per row takes 8 tokens, no shared memory.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8, kTokens = 8;

template <DType kType>
__global__ void __launch_bounds__(kWarps * 32) linearFloat(LinearParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
    const int token0 = static_cast<int>(blockIdx.y) * kTokens, lane = static_cast<int>(threadIdx.x % 32);
    if (row >= p.w.rows) return;
    const int nTokens = min(kTokens, p.m - token0);
    float sums[kTokens];
    dotFloatRow<kType>(p.w.data + int64_t{row} * p.w.groups * kGroup * kValueBytes<kType>, p.w.cols,
                       p.in.f32 + int64_t{token0} * p.in.cols, nTokens, sums);
#pragma unroll
    for (int t = 0; t < kTokens; t++) {
        if (lane != t || t >= nTokens) continue;
        float& out = p.out[int64_t{token0 + t} * p.outCols + row];
        const float value = sums[t] + (p.w.bias ? p.w.bias[row] : 0.0f);
        out = p.accumulate ? out + value : value;
    }
}

}  // namespace

void launchLinearFloat(const LinearParams& p, const Stream& stream) {
    const dim3 grid(ceilDiv(p.w.rows, kWarps), ceilDiv(p.m, kTokens));
    const auto kernel = p.w.dtype == DType::F32   ? linearFloat<DType::F32>
                        : p.w.dtype == DType::F16 ? linearFloat<DType::F16>
                                                  : linearFloat<DType::BF16>;
    launch(stream, kernel, grid, kWarps * 32, 0, p);
}

}  // namespace dllama::gpu
