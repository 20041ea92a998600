#pragma once

#include "gpu/kernels/quant-formats.cuh"

/// One row of activations against rows of quantised weights, by dp4a. Of a warp's 32 lanes each four share a group of
/// 128 columns (layouts: kernels.hpp), so that a warp reads 512 contiguous bytes of a Q40 row at a time.
namespace dllama::gpu {

/// The lane's share of one group of an activation row.
struct ActivationChunk {
    uint4 first, second;
    float4 scales;
    __device__ void load(const int8_t* values, const float* rowScales, int group, int t) {
        const int8_t* at = values + group * kGroup + t * 16;
        first = *reinterpret_cast<const uint4*>(at);
        second = *reinterpret_cast<const uint4*>(at + 64);
        scales = *reinterpret_cast<const float4*>(rowScales + group * 4);
    }
};

template <DType kType>
__device__ inline float dotChunk(const WeightChunk<kType>& w, const ActivationChunk& a) {
    const int4 dots = w.dots(a.first, a.second);
    const float4 scales = widenScales(w.scales);
    float sum = static_cast<float>(dots.x) * (scales.x * a.scales.x);
    sum += static_cast<float>(dots.y) * (scales.y * a.scales.y);
    sum += static_cast<float>(dots.z) * (scales.z * a.scales.z);
    return sum + static_cast<float>(dots.w) * (scales.w * a.scales.w);
}

/// A row of weights in memory.
struct WeightRow {
    const uint8_t* data;
    const __half* scales;
};
template <DType kType>
__device__ inline WeightRow weightRow(const Weights& w, int row) {
    return {w.data + int64_t{row} * w.groups * WeightChunk<kType>::kGroupBytes, w.scales + int64_t{row} * w.groups * 4};
}

/// sums[r] = rows[r] . activations, in every lane. kDepth steps of 8 groups are under way at once; `atStart` is called
/// when the first of them have been issued: the place to wait for the activations.
template <DType kType, int kRows, int kDepth, typename AtStart>
__device__ inline void dotRows(const WeightRow (&rows)[kRows], int groups, const int8_t* values, const float* actScales,
                               float (&sums)[kRows], const AtStart& atStart) {
    const int lane = static_cast<int>(threadIdx.x % 32), first = lane / 4, t = lane % 4;
    WeightChunk<kType> ring[kDepth][kRows];
    const auto fetch = [&](int slot, int group) {
        if (group < groups)
            for (int r = 0; r < kRows; r++) ring[slot][r].load(rows[r].data, rows[r].scales, group, t);
    };
#pragma unroll
    for (int s = 0; s < kDepth; s++) fetch(s, first + 8 * s);
    atStart();
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    for (int base = first; base < groups; base += 8 * kDepth) {
#pragma unroll
        for (int s = 0; s < kDepth; s++) {
            const int group = base + 8 * s;
            if (group < groups) {
                ActivationChunk a;
                a.load(values, actScales, group, t);
#pragma unroll
                for (int r = 0; r < kRows; r++) sums[r] += dotChunk(ring[s][r], a);
            }
            fetch(s, group + 8 * kDepth);
        }
    }
#pragma unroll
    for (float& sum : sums) sum = warpSum(sum) * WeightChunk<kType>::kFactor;
}

}  // namespace dllama::gpu
