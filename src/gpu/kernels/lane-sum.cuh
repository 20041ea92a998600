#pragma once

#include "gpu/kernels/device.cuh"

/// Sums whose bits are the same on every device. Include it only where fused multiply-add is off.
namespace dllama::gpu {

/// Sums term(i) over [0, n) as backend.hpp states: value i in lane i % 32, lanes pairwise. All kThreads threads of the
/// block call it and get the sum. terms: shared memory for n values and one more. The chain of additions cannot be
/// shared out; all else is, so that it takes four cycles for 32 values.
template <int kThreads, typename Term>
__device__ inline float laneSum(int n, float* terms, const Term& term) {
    constexpr int kBatch = 16, kStride = 32 * kBatch;
    const int tid = static_cast<int>(threadIdx.x);
    __syncthreads();  // the last sum has been read
    inBatches<kThreads>(n, term, [&](int i, float value) { terms[i] = value; });
    __syncthreads();
    if (tid < 32) {
        float sum = 0.0f, next[kBatch];
        int i = tid;
        const auto load = [&](int from) {
#pragma unroll
            for (int j = 0; j < kBatch; j++) next[j] = terms[from + 32 * j];
        };
        const int nBatches = n / kStride;
        if (nBatches > 0) load(i);
        for (int batch = 0; batch < nBatches; batch++) {
            float now[kBatch];
#pragma unroll
            for (int j = 0; j < kBatch; j++) now[j] = next[j];
            i += kStride;
            if (batch + 1 < nBatches) load(i);
#pragma unroll
            for (int j = 0; j < kBatch; j++) sum += now[j];
        }
        for (; i < n; i += 32) sum += terms[i];
#pragma unroll
        for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
        if (tid == 0) terms[n] = sum;
    }
    __syncthreads();
    return terms[n];
}

}  // namespace dllama::gpu
