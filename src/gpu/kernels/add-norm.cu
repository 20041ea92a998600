#include "gpu/kernels/lane-sum.cuh"

/// Residual addition, norm and quantisation in one kernel. Grid: a block of 1024 threads per row. Shared memory: the
/// row and the terms of a sum as f32, and the norms' weights, which are brought there while the predecessor still runs.
/// Reads x, y and the weights once, writes x, out and its Q80 form. With one row its time is latency: two sums in a
/// fixed order, and fetching its own instructions, so that the code is kept small.
///
/// This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 1024;

/// A norm's weight and bias in shared memory.
struct StagedNorm {
    float* weight;
    float* bias;
};

template <bool kLayer>
__device__ inline StagedNorm stageNorm(const NormWeights& norm, int cols, float* to) {
    inBatches<kThreads>(
        cols, [&](int i) { return norm.weight[i]; }, [&](int i, float value) { to[i] = value; });
    if constexpr (kLayer)
        inBatches<kThreads>(
            cols, [&](int i) { return norm.bias[i]; }, [&](int i, float value) { to[cols + i] = value; });
    return {to, to + cols};
}

struct Normalizer {
    float shift, scale;
};

/// Of the row in shared memory, which the block has just written; for RMS the squares are in terms.
template <bool kLayer>
__device__ inline Normalizer normalizerOf(float eps, const float* row, int cols, float* terms) {
    const float count = static_cast<float>(cols);
    float shift = 0.0f;
    if constexpr (kLayer) {
        shift = laneSum(terms, cols) / count;
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < cols; i += kThreads)
            terms[i] = (row[i] - shift) * (row[i] - shift);
    }
    return {shift, 1.0f / sqrtf(laneSum(terms, cols) / count + eps)};
}

template <bool kLayer>
__device__ inline float normalized(const StagedNorm& norm, const Normalizer& by, float x, int i) {
    if constexpr (kLayer) return (x - by.shift) * by.scale * norm.weight[i] + norm.bias[i];
    return x * by.scale * norm.weight[i];
}

/// What normalizerOf() sums first.
template <bool kLayer>
__device__ inline float firstTerm(float x) {
    return kLayer ? x : x * x;
}

template <bool kLayer, bool kPost>
__global__ void __launch_bounds__(kThreads) addNorm(AddNormParams p) {
    extern __shared__ float row[];  // (cols), terms (cols + 1), then the norms' weights
    float* terms = row + p.cols;
    const int tid = static_cast<int>(threadIdx.x), perNorm = kLayer ? 2 * p.cols : p.cols;
    letSuccessorStart();
    StagedNorm next{}, post{};
    if (p.hasNext) next = stageNorm<kLayer>(p.next, p.cols, terms + p.cols + 1);
    if constexpr (kPost) post = stageNorm<kLayer>(p.post, p.cols, terms + p.cols + 1 + perNorm);
    waitForPredecessor();

    const int64_t begin = int64_t{blockIdx.x} * p.cols;
    const float* x = (p.scaledBase ? p.scaledBase : p.x) + begin;
    const float alpha = p.scaledBase ? p.alpha : 1.0f;
    const float* y = p.y ? p.y + begin : nullptr;
    Normalizer byPost{};
    if constexpr (kPost) {
        inBatches<kThreads>(
            p.cols, [&](int i) { return y[i]; },
            [&](int i, float value) {
                row[i] = value;
                terms[i] = firstTerm<kLayer>(value);
            });
        byPost = normalizerOf<kLayer>(p.post.eps, row, p.cols, terms);
        __syncthreads();
    }
    struct Pair {
        float x, y;
    };
    inBatches<kThreads>(
        p.cols,
        [&](int i) {
            return Pair{x[i], kPost ? row[i] : y ? y[i] : 0.0f};
        },
        [&](int i, const Pair& in) {
            // Times 1 and plus 0 change no bit but the sign of a zero.
            float sum = in.x * alpha;
            if (y) sum += kPost ? normalized<kLayer>(post, byPost, in.y, i) : in.y;
            p.x[begin + i] = sum;
            row[i] = sum;
            terms[i] = firstTerm<kLayer>(sum);
        });
    if (!p.hasNext) return;
    const Normalizer byNext = normalizerOf<kLayer>(p.next.eps, row, p.cols, terms);
    // Whole warps, so that a warp's values are one block of 32.
#pragma unroll 2
    for (int i = tid; i < (p.cols + 31) / 32 * 32; i += kThreads) {
        const float value = i < p.cols ? normalized<kLayer>(next, byNext, row[i], i) : 0.0f;
        if (i < p.cols) p.out.f32[begin + i] = value;
        if (p.out.q.values) quantizeWarp(p.out.q, blockIdx.x, i, value);
    }
}

}  // namespace

void launchAddNorm(const AddNormParams& p, const Stream& stream) {
    // A model has norms of one kind.
    const bool layer = p.hasNext ? p.next.layer : p.post.layer, post = p.y && p.hasPost;
    const auto kernel = layer ? (post ? addNorm<true, true> : addNorm<true, false>)
                              : (post ? addNorm<false, true> : addNorm<false, false>);
    const size_t floats = size_t{2} * p.cols + 1 + size_t{2} * p.cols * (layer ? 2 : 1);
    launch(stream, kernel, p.rows, kThreads, floats * sizeof(float), p);
}

}  // namespace dllama::gpu
