#pragma once

#include "gpu/kernels/device.cuh"

/// Rows of F32, F16 and BF16 weights against f32 activations.
namespace dllama::gpu {

template <DType kType>
inline constexpr int kValueBytes = kType == DType::F32 ? 4 : 2;

/// Eight consecutive values of a padded row as f32.
template <DType kType>
__device__ inline void loadEight(const uint8_t* row, int col, float (&x)[8]) {
    if constexpr (kType == DType::F32) {
        for (int half = 0; half < 2; half++) {
            const uint4 bits = loadStream16(row + int64_t{col + 4 * half} * 4);
            x[4 * half] = __uint_as_float(bits.x);
            x[4 * half + 1] = __uint_as_float(bits.y);
            x[4 * half + 2] = __uint_as_float(bits.z);
            x[4 * half + 3] = __uint_as_float(bits.w);
        }
    } else {
        const uint4 bits = loadStream16(row + int64_t{col} * 2);
        const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (kType == DType::BF16) {
                x[2 * i] = __uint_as_float(words[i] << 16);
                x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
            } else {
                const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
                x[2 * i] = pair.x;
                x[2 * i + 1] = pair.y;
            }
        }
    }
}

/// sums[t] = row . activations of token t (stride cols), in every lane. The row is padded with zeros to 128 columns.
template <DType kType, int kTokens>
__device__ inline void dotFloatRow(const uint8_t* row, int cols, const float* x, int nTokens, float (&sums)[kTokens]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
#pragma unroll 2
    for (int col = lane * 8; col < cols; col += 256) {
        float w[8];
        loadEight<kType>(row, col, w);
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            if (t >= nTokens) continue;
            const float* a = x + int64_t{t} * cols + col;
            if (cols % 8 == 0) {
                const float4 low = *reinterpret_cast<const float4*>(a), high = *reinterpret_cast<const float4*>(a + 4);
                sums[t] += w[0] * low.x + w[1] * low.y + w[2] * low.z + w[3] * low.w;
                sums[t] += w[4] * high.x + w[5] * high.y + w[6] * high.z + w[7] * high.w;
            } else {
                for (int i = 0; i < 8; i++)
                    if (col + i < cols) sums[t] += w[i] * a[i];
            }
        }
    }
#pragma unroll
    for (float& sum : sums) sum = warpSum(sum);
}

}  // namespace dllama::gpu
