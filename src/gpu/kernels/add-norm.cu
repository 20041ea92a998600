#include "gpu/kernels/lane-sum.cuh"

/// Residual addition, norm and quantisation in one kernel. Grid: a block of 512 threads per row. Shared memory: the
/// rows of x and y, sums of pieces, and the norms' weights where there is room, brought there while the predecessor
/// still runs. A thread has the same pieces of all of them (four values, or one where the columns are no multiple of
/// four), so that only the sums need other threads' values. With one row its time is latency: two sums in a fixed
/// order, and fetching its own instructions: the code is kept small, and run once before it counts.
///
/// This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 512, kFewRows = 32;

struct Normalizer {
    float shift, scale;
};

/// Of the row in shared memory, behind a barrier. sums: scratch in shared memory. Not inlined: the second call finds
/// its instructions there.
template <bool kLayer>
__device__ __noinline__ Normalizer normalizerOf(const float* row, int cols, float eps, float* sums) {
    __shared__ Normalizer found;
    const float count = static_cast<float>(cols);
    const bool adds = threadIdx.x < 32;
    float shift = 0.0f;
    if constexpr (kLayer) {
        addPieces<kThreads>(ValueTerms{row}, cols, sums);
        __syncthreads();
        if (adds) {
            shift = sumOfPieces(sums, cols) / count;
            if (threadIdx.x == 0) found.shift = shift;
        }
        __syncthreads();
        shift = found.shift;
    }
    addPieces<kThreads>(SquareTerms{row, shift}, cols, sums);
    __syncthreads();
    if (adds) {
        const float squares = sumOfPieces(sums, cols);
        if (threadIdx.x == 0) found = {shift, 1.0f / sqrtf(squares / count + eps)};
    }
    __syncthreads();
    return found;
}

template <bool kLayer>
__device__ inline float normalized(float x, const Normalizer& by, float weight, float bias) {
    if constexpr (kLayer) return (x - by.shift) * by.scale * weight + bias;
    return x * by.scale * weight;
}

/// A norm's weights, in shared or global memory.
template <bool kLayer>
struct NormPieces {
    const float *weight, *bias;
    template <int kWidth>
    __device__ void load(int i, Piece<kWidth>& w, Piece<kWidth>& b) const {
        w = pieceAt<kWidth>(weight + i);
        if constexpr (kLayer) b = pieceAt<kWidth>(bias + i);
    }
};

template <bool kLayer, bool kPost, int kWidth>
__global__ void __launch_bounds__(kThreads) addNorm(AddNormParams p) {
    extern __shared__ __align__(16) float shared[];
    constexpr int kBytes = sizeof(float) * kWidth, kNormRows = kLayer ? 2 : 1;
    const int cols = p.cols, pitch = (cols + 3) / 4 * 4;
    float *x = shared, *y = x + pitch, *sums = y + pitch, *staged = sums + pieceSums(cols);
    letSuccessorStart();
    const auto stage = [&](const NormWeights& norm) {
        if (!p.stageWeights) return NormPieces<kLayer>{norm.weight, norm.bias};
        float* to = staged;
        staged += kNormRows * pitch;
        eachPiece<kThreads, kWidth>(cols, [&](int i) {
            copyAsync<kBytes>(to + i, norm.weight + i);
            if constexpr (kLayer) copyAsync<kBytes>(to + pitch + i, norm.bias + i);
        });
        return NormPieces<kLayer>{to, to + pitch};
    };
    NormPieces<kLayer> next{}, post{};
    if (p.hasNext) next = stage(p.next);
    if constexpr (kPost) post = stage(p.post);
    const int64_t begin = int64_t{blockIdx.x} * cols;
    const float* base = (p.scaledBase ? p.scaledBase : p.x) + begin;
    const float alpha = p.scaledBase ? p.alpha : 1.0f;
    const auto normalizer = [&](const float* row, float eps) {
        __syncthreads();
        return normalizerOf<kLayer>(row, cols, eps, sums);
    };
    // Twice for few rows. The first pass, while the predecessor runs, works on whatever is in shared memory and leaves
    // its results there (the quantised ones from y on): what it does is to fetch the instructions.
#pragma unroll 1
    for (int pass = gridDim.x <= kFewRows ? 0 : 1; pass < 2; pass++) {
        const bool counts = pass == 1;
        float* toX = counts ? p.x + begin : x;
        float* toOut = counts ? p.out.f32 + begin : x;
        QuantRows toQuants = p.out.q;
        if (counts) {
            waitForPredecessor();
            eachPiece<kThreads, kWidth>(cols, [&](int i) {
                if (p.y) copyAsync<kBytes>(y + i, p.y + begin + i);
                copyAsync<kBytes>(x + i, base + i);
            });
        } else if (toQuants.values) {
            toQuants.values = reinterpret_cast<int8_t*>(y) - int64_t{blockIdx.x} * toQuants.groups * kGroup;
            toQuants.scales = y + toQuants.groups * kGroup / 4 - int64_t{blockIdx.x} * toQuants.groups * 4;
        }
        commitCopies();
        waitCopies<0>();

        Normalizer byPost{};
        if constexpr (kPost) byPost = normalizer(y, p.post.eps);
        eachPiece<kThreads, kWidth>(cols, [&](int i) {
            Piece<kWidth> sum = pieceAt<kWidth>(x + i), weight{}, bias{};
            if constexpr (kPost) post.load(i, weight, bias);
#pragma unroll
            for (int j = 0; j < kWidth; j++) {
                // Times 1 changes no bit.
                sum.v[j] *= alpha;
                if (p.y) sum.v[j] += kPost ? normalized<kLayer>(y[i + j], byPost, weight.v[j], bias.v[j]) : y[i + j];
            }
            pieceAt<kWidth>(x + i) = sum;
            pieceAt<kWidth>(toX + i) = sum;
        });
        if (!p.hasNext) continue;
        const Normalizer byNext = normalizer(x, p.next.eps);
        // To whole groups, so that the lanes that share a block of 32 all take part.
        eachPiece<kThreads, kWidth>((cols + kGroup - 1) / kGroup * kGroup, [&](int i) {
            Piece<kWidth> value{}, weight{}, bias{};
            if (i < cols) {
                value = pieceAt<kWidth>(x + i);
                next.load(i, weight, bias);
#pragma unroll
                for (int j = 0; j < kWidth; j++)
                    value.v[j] = normalized<kLayer>(value.v[j], byNext, weight.v[j], bias.v[j]);
                pieceAt<kWidth>(toOut + i) = value;
            }
            if (toQuants.values) quantizePieces(toQuants, blockIdx.x, i, value.v);
        });
        __syncthreads();  // the second pass finds nobody in the first
    }
}

template <bool kLayer, bool kPost>
auto kernelOf(bool wide) {
    return wide ? addNorm<kLayer, kPost, 4> : addNorm<kLayer, kPost, 1>;
}

}  // namespace

void launchAddNorm(const AddNormParams& params, const Stream& stream) {
    AddNormParams p = params;
    // A model has norms of one kind.
    const bool layer = p.hasNext ? p.next.layer : p.post.layer, post = p.y && p.hasPost, wide = p.cols % 4 == 0;
    const auto kernel = layer ? (post ? kernelOf<true, true>(wide) : kernelOf<true, false>(wide))
                              : (post ? kernelOf<false, true>(wide) : kernelOf<false, false>(wide));
    const size_t row = sizeof(float) * ceilDiv(p.cols, 4) * 4;
    const size_t rows = 2 * row + sizeof(float) * pieceSums(p.cols);
    const size_t all = rows + row * (p.hasNext + post) * (layer ? 2 : 1);
    p.stageWeights = all <= static_cast<size_t>(stream.sharedBytes);
    launch(stream, kernel, p.rows, kThreads, p.stageWeights ? all : rows, p);
}

}  // namespace dllama::gpu
