#pragma once

#include "gpu/kernels/device.cuh"

/// Sums whose bits are the same on every device. Include it only where fused multiply-add is off.
namespace dllama::gpu {

/// Sums terms[0..n) in shared memory as backend.hpp states: value i in lane i % 32, lanes pairwise. One warp calls it;
/// lane 0 gets the sum. The chain of additions takes four cycles for 32 values. Not inlined: kernels that run as one
/// block wait longest for their instructions.
__device__ __noinline__ inline float warpLaneSum(const float* terms, int n) {
    constexpr int kBatch = 8, kStride = 32 * kBatch;
    float sum = 0.0f;
    int i = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
    for (; i + kStride - 32 < n; i += kStride) {
        float batch[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; j++) batch[j] = terms[i + 32 * j];
#pragma unroll
        for (int j = 0; j < kBatch; j++) sum += batch[j];
    }
#pragma unroll 1
    for (; i < n; i += 32) sum += terms[i];
#pragma unroll
    for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
    return sum;
}

/// The same for a whole block, whose threads all get the sum, and which has just written the terms. terms has room for
/// n + 1 values.
__device__ inline float laneSum(float* terms, int n) {
    __syncthreads();
    if (threadIdx.x < 32) {
        const float sum = warpLaneSum(terms, n);
        if (threadIdx.x == 0) terms[n] = sum;
    }
    __syncthreads();
    return terms[n];
}

}  // namespace dllama::gpu
