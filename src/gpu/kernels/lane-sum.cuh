#pragma once

#include "gpu/kernels/device.cuh"

/// Sums whose bits are the same on every device. Include it only where fused multiply-add is off.
namespace dllama::gpu {

/// What is summed: load(i) fetches from shared memory, term() makes the value of it.
struct ValueTerms {
    const float* x;
    __device__ float load(int i) const { return x[i]; }
    __device__ float term(float raw) const { return raw; }
};
struct SquareTerms {
    const float* x;
    float shift;
    __device__ float load(int i) const { return x[i]; }
    __device__ float term(float raw) const { return (raw - shift) * (raw - shift); }
};
struct ProductTerms {
    const float *a, *b;
    __device__ float2 load(int i) const { return {a[i], b[i]}; }
    __device__ float term(float2 raw) const { return raw.x * raw.y; }
};

/// The sum of terms 0..n-1 as backend.hpp states: value i in lane i % 32, lanes pairwise. One warp calls it and gets
/// the sum in every lane. The chain of additions takes four cycles for 32 values; batches are long because the compiler
/// fetches ahead only within one.
template <typename Terms>
__device__ inline float warpLaneSum(const Terms& terms, int n) {
    constexpr int kBatch = 32, kStride = 32 * kBatch;
    int i = static_cast<int>(threadIdx.x % 32);
    float sum = 0.0f;
#pragma unroll 1
    for (; i + kStride - 32 < n; i += kStride) {
#pragma unroll
        for (int j = 0; j < kBatch; j++) sum += terms.term(terms.load(i + 32 * j));
    }
#pragma unroll 1
    for (; i < n; i += 32) sum += terms.term(terms.load(i));
        // Both of a pair of lanes add the same two values.
#pragma unroll
    for (int width = 16; width > 0; width /= 2) sum += __shfl_xor_sync(~0u, sum, width);
    return sum;
}

/// Calls use(i) for this thread's share of [0, n) in pieces of kWidth values that begin at i.
template <int kThreads, int kWidth, typename Use>
__device__ inline void eachPiece(int n, const Use& use) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * kWidth; i < n; i += kThreads * kWidth) use(i);
}

template <int kWidth>
struct alignas(sizeof(float) * kWidth) Piece {
    float v[kWidth];
};
template <int kWidth>
__device__ inline Piece<kWidth>& pieceAt(float* values) {
    return *reinterpret_cast<Piece<kWidth>*>(values);
}
template <int kWidth>
__device__ inline const Piece<kWidth>& pieceAt(const float* values) {
    return *reinterpret_cast<const Piece<kWidth>*>(values);
}

}  // namespace dllama::gpu
