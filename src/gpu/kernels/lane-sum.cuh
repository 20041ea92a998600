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

constexpr int kSumPiece = 256;

/// Room in shared memory for addPieces().
__host__ __device__ inline int pieceSums(int n) {
    return (n + kSumPiece - 1) / kSumPiece * 32;
}

/// The sum of terms 0..n-1 in the order of Backend::addNorm has two parts. First every warp of the block adds up some
/// pieces; sums: (pieces, lanes) in shared memory.
template <int kThreads, typename Terms>
__device__ inline void addPieces(const Terms& terms, int n, float* sums) {
    constexpr int kOfLane = kSumPiece / 32;
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll 1
    for (int piece = static_cast<int>(threadIdx.x / 32); piece * kSumPiece < n; piece += kThreads / 32) {
        const int first = piece * kSumPiece + lane;
        float values[kOfLane], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kOfLane; j++) values[j] = terms.term(terms.load(min(first + 32 * j, n - 1)));
            // Zeros change no bit of a sum that began with one.
#pragma unroll
        for (int j = 0; j < kOfLane; j++) sum += first + 32 * j < n ? values[j] : 0.0f;
        sums[piece * 32 + lane] = sum;
    }
}
/// Then, behind a barrier, one warp adds these, and gets the sum in every lane.
__device__ inline float sumOfPieces(const float* sums, int n) {
    const int end = pieceSums(n);
    float sum = 0.0f;
#pragma unroll 16
    for (int i = static_cast<int>(threadIdx.x % 32); i < end; i += 32) sum += sums[i];
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
