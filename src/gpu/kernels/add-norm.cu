#include "gpu/kernels/device.cuh"

/// Residual addition, norm and quantisation in one kernel. Grid: a block of 256 threads per row. Shared memory: the row
/// as f32, and 16 lane sums. Reads x, y and the norm weights once, writes x, out and its Q80 form.
///
/// This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 256;

/// Sums term(i) over [0, n) as backend.hpp states: value i in lane i % 16, lanes pairwise. All threads get the sum.
template <typename Term>
__device__ float laneSum(int n, float* lanes, const Term& term) {
    __syncthreads();
    if (threadIdx.x < 16) {
        float sum = 0.0f;
#pragma unroll 16
        for (int i = static_cast<int>(threadIdx.x); i < n; i += 16) sum += term(i);
#pragma unroll
        for (int width = 8; width > 0; width /= 2) sum += __shfl_down_sync(0xffffu, sum, width, 16);
        if (threadIdx.x == 0) lanes[0] = sum;
    }
    __syncthreads();
    return lanes[0];
}

struct Normalizer {
    float shift, scale;
};

/// Of the row of values in shared memory.
__device__ Normalizer normalizerOf(const NormWeights& norm, const float* row, int n, float* lanes) {
    Normalizer result{0.0f, 0.0f};
    const float count = static_cast<float>(n);
    float squares;
    if (norm.layer) {
        const float mean = laneSum(n, lanes, [&](int i) { return row[i]; }) / count;
        result.shift = mean;
        squares = laneSum(n, lanes, [&](int i) { return (row[i] - mean) * (row[i] - mean); });
    } else {
        squares = laneSum(n, lanes, [&](int i) { return row[i] * row[i]; });
    }
    result.scale = 1.0f / sqrtf(squares / count + norm.eps);
    return result;
}

__device__ inline float normalized(const NormWeights& norm, const Normalizer& by, float x, int i) {
    if (norm.layer) return (x - by.shift) * by.scale * norm.weight[i] + norm.bias[i];
    return x * by.scale * norm.weight[i];
}

__global__ void __launch_bounds__(kThreads) addNorm(AddNormParams p) {
    extern __shared__ float row[];  // (cols), then 16 sums
    float* lanes = row + p.cols;
    const int64_t begin = int64_t{blockIdx.x} * p.cols;
    const int tid = static_cast<int>(threadIdx.x);
    letSuccessorStart();
    waitForPredecessor();

    Normalizer post{};
    if (p.y && p.hasPost) {
        for (int i = tid; i < p.cols; i += kThreads) row[i] = p.y[begin + i];
        post = normalizerOf(p.post, row, p.cols, lanes);
    }
    for (int i = tid; i < p.cols; i += kThreads) {
        float x = p.scaledBase ? p.alpha * p.scaledBase[begin + i] : p.x[begin + i];
        if (p.y) {
            const float y = p.y[begin + i];
            x += p.hasPost ? normalized(p.post, post, y, i) : y;
        }
        p.x[begin + i] = x;
        row[i] = x;
    }
    if (!p.hasNext) return;
    const Normalizer next = normalizerOf(p.next, row, p.cols, lanes);
    // Whole warps, so that a warp's values are one block of 32.
    for (int i = tid; i < (p.cols + 31) / 32 * 32; i += kThreads) {
        const float value = i < p.cols ? normalized(p.next, next, row[i], i) : 0.0f;
        if (i < p.cols) p.out.f32[begin + i] = value;
        if (p.out.q.values) quantizeWarp(p.out.q, blockIdx.x, i, value);
    }
}

}  // namespace

void launchAddNorm(const AddNormParams& p, const Stream& stream) {
    launch(stream, addNorm, p.rows, kThreads, (p.cols + 16) * sizeof(float), p);
}

}  // namespace dllama::gpu
