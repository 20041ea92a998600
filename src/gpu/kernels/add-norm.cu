#include "gpu/kernels/lane-sum.cuh"

/// Residual addition, norm and quantisation in one kernel. Grid: a block of 512 threads per row. Shared memory: the row
/// as f32, and what laneSum needs. Reads x, y and the norm weights once, writes x, out and its Q80 form.
///
/// This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 512;

struct Normalizer {
    float shift, scale;
};

/// Of the row of values in shared memory.
__device__ Normalizer normalizerOf(const NormWeights& norm, const float* row, int n, float* terms) {
    Normalizer result{0.0f, 0.0f};
    const float count = static_cast<float>(n);
    float squares;
    if (norm.layer) {
        const float mean = laneSum<kThreads>(n, terms, [&](int i) { return row[i]; }) / count;
        result.shift = mean;
        squares = laneSum<kThreads>(n, terms, [&](int i) { return (row[i] - mean) * (row[i] - mean); });
    } else {
        squares = laneSum<kThreads>(n, terms, [&](int i) { return row[i] * row[i]; });
    }
    result.scale = 1.0f / sqrtf(squares / count + norm.eps);
    return result;
}

/// A norm's weight and bias at one column.
struct Affine {
    float weight, bias;
};
__device__ inline Affine affineOf(const NormWeights& norm, int i) {
    return {norm.weight[i], norm.layer ? norm.bias[i] : 0.0f};
}

__device__ inline float normalized(const NormWeights& norm, const Normalizer& by, const Affine& affine, float x) {
    if (norm.layer) return (x - by.shift) * by.scale * affine.weight + affine.bias;
    return x * by.scale * affine.weight;
}

struct Inputs {
    float x, y;
    Affine post;
};

__global__ void __launch_bounds__(kThreads) addNorm(AddNormParams p) {
    extern __shared__ float row[];  // (cols), then laneSum's terms
    float* terms = row + p.cols;
    const int64_t begin = int64_t{blockIdx.x} * p.cols;
    const int tid = static_cast<int>(threadIdx.x);
    letSuccessorStart();
    // The weights come from memory, all else from the cache: ask for them before the wait.
    if (p.hasPost) prefetch(p.post.weight, p.cols, tid);
    if (p.hasNext) prefetch(p.next.weight, p.cols, tid);
    waitForPredecessor();

    const float* x = p.scaledBase ? p.scaledBase + begin : p.x + begin;
    const float* y = p.y ? p.y + begin : nullptr;
    const float alpha = p.scaledBase ? p.alpha : 1.0f;
    Normalizer post{};
    if (y && p.hasPost) {
        inBatches<kThreads>(
            p.cols, [&](int i) { return y[i]; }, [&](int i, float value) { row[i] = value; });
        post = normalizerOf(p.post, row, p.cols, terms);
    }
    inBatches<kThreads>(
        p.cols,
        [&](int i) {
            return Inputs{x[i], y ? y[i] : 0.0f, p.hasPost ? affineOf(p.post, i) : Affine{}};
        },
        [&](int i, const Inputs& in) {
            float sum = p.scaledBase ? alpha * in.x : in.x;
            if (y) sum += p.hasPost ? normalized(p.post, post, in.post, in.y) : in.y;
            p.x[begin + i] = sum;
            row[i] = sum;
        });
    if (!p.hasNext) return;
    const Normalizer next = normalizerOf(p.next, row, p.cols, terms);
    // Whole warps, so that a warp's values are one block of 32.
    inBatches<kThreads>((p.cols + 31) / 32 * 32, [&](int i) { return affineOf(p.next, min(i, p.cols - 1)); },
                        [&](int i, const Affine& affine) {
                            const float value = i < p.cols ? normalized(p.next, next, affine, row[i]) : 0.0f;
                            if (i < p.cols) p.out.f32[begin + i] = value;
                            if (p.out.q.values) quantizeWarp(p.out.q, blockIdx.x, i, value);
                        });
}

}  // namespace

void launchAddNorm(const AddNormParams& p, const Stream& stream) {
    launch(stream, addNorm, p.rows, kThreads, (2 * p.cols + 1) * sizeof(float), p);
}

}  // namespace dllama::gpu
