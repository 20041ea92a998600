#pragma once

#include "gpu/kernels/device.cuh"

/// Norm and rotation of one head in shared memory, by one warp.
namespace dllama::gpu {

__device__ inline void normalizeHead(const NormWeights& norm, float* x, int headDim) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    float mean = 0.0f, square = 0.0f;
    if (norm.layer) {
#pragma unroll 1
        for (int i = lane; i < headDim; i += 32) mean += x[i];
        mean = warpSum(mean) / static_cast<float>(headDim);
    }
#pragma unroll 1
    for (int i = lane; i < headDim; i += 32) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(warpSum(square) / static_cast<float>(headDim) + norm.eps);
#pragma unroll 1
    for (int i = lane; i < headDim; i += 32)
        x[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.layer ? norm.bias[i] : 0.0f);
    __syncwarp();
}

/// angle(part, pair) returns cosine and sine.
template <typename Angle>
__device__ inline void rotateHead(const RopeStoreParams& p, float* x, const Angle& angle) {
    const int half = p.rotaryDim / 2;
#pragma unroll 1
    for (int j = static_cast<int>(threadIdx.x % 32); j < half * p.parts; j += 32) {
        const int part = j / half, pair = j % half;
        const float2 turn = angle(part, pair);
        float* turned = x + part * p.rotaryDim;
        float& a = turned[p.interleaved ? 2 * pair : pair];
        float& b = turned[p.interleaved ? 2 * pair + 1 : pair + half];
        const float first = a * turn.x - b * turn.y;
        b = b * turn.x + a * turn.y;
        a = first;
    }
    __syncwarp();
}

}  // namespace dllama::gpu
