#include "gpu/kernels/lane-sum.cuh"

/// Chooses experts. This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
///
/// Few tokens, routeFew: grid (experts, tokens), 512 threads; a block multiplies one row of the router, adds the
/// products in the order of backend.hpp, and the last block of a token to finish chooses. Shared memory: the
/// weights, there before the predecessor has finished, and the input. Many tokens, routeLogits: grid (tokens / 32,
/// experts / 16), 512 threads; 32 lanes x 16 tiles of 8 tokens by 4 experts; then chooseMany, a block per token.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 512;

__device__ constexpr double kInverseFactorials[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

/// e^x by range reduction and Taylor series in double, rounded to float: the same bits on every machine.
__device__ float portableExp(float x) {
    const double clamped = fmin(fmax(static_cast<double>(x), -104.0), 89.0);
    const double n = floor(clamped * 1.4426950408889634 + 0.5);
    const double r = clamped - n * 0.6931471805599453;
    double sum = kInverseFactorials[13];
#pragma unroll
    for (int k = 12; k >= 0; k--) sum = sum * r + kInverseFactorials[k];
    return static_cast<float>(sum * __longlong_as_double((static_cast<long long>(n) + 1023) << 52));
}

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + portableExp(-x));
}

/// One block of kThreads. scores: nExperts values in shared memory, sigmoids or logits to be overwritten by their
/// softmax, thread by thread (e = thread, thread + kThreads, ...); bias: what is added for the choice, or null; choice:
/// scratch, three times as much as scores. Every expert counts those that come before it, so that all take their
/// places at once.
template <int kThreads>
__device__ inline void chooseExperts(const RouteParams& p, int token, const float* bias, float* scores, float* choice) {
    const int tid = static_cast<int>(threadIdx.x), n = p.nExperts;
    if (!p.sigmoid) {
        __syncthreads();
        float largest = -INFINITY;
#pragma unroll 1
        for (int e = 0; e < n; e++) largest = fmaxf(largest, scores[e]);
        __syncthreads();
#pragma unroll 1
        for (int e = tid; e < n; e += kThreads) scores[e] = portableExp(scores[e] - largest);
        __syncthreads();
        float sum = 0.0f;  // in index order, as the CPU adds
#pragma unroll 1
        for (int e = 0; e < n; e++) sum += scores[e];
        __syncthreads();
#pragma unroll 1
        for (int e = tid; e < n; e += kThreads) scores[e] /= sum;
    }
#pragma unroll 1
    for (int e = tid; e < n; e += kThreads) {
        const float value = scores[e] + (bias ? bias[e] : 0.0f);
        choice[e] = isnan(value) ? -INFINITY : value;  // no number: last, but in its place
    }
    __syncthreads();

    float* weights = choice + n;
    auto* chosen = reinterpret_cast<int*>(weights + n);
    if (p.nGroups > 1) {
        const int width = n / p.nGroups;
        float* ranks = weights;  // of the groups: the sums of their two best
#pragma unroll 1
        for (int g = tid; g < p.nGroups; g += kThreads) {
            float best = -INFINITY, second = -INFINITY;
#pragma unroll 1
            for (int i = 0; i < width; i++) {
                const float value = choice[g * width + i];
                second = fmaxf(second, fminf(best, value));
                best = fmaxf(best, value);
            }
            ranks[g] = best + (width > 1 ? second : 0.0f);
        }
        __syncthreads();
#pragma unroll 1
        for (int e = tid; e < n; e += kThreads) {
            int better = 0;
#pragma unroll 1
            for (int g = 0; g < p.nGroups; g++)
                better += ranks[g] > ranks[e / width] || (ranks[g] == ranks[e / width] && g < e / width);
            if (better >= p.topGroups) choice[e] = -INFINITY;
        }
        __syncthreads();
    }

    // Four lanes an expert. Lanes past the last expert repeat it.
    constexpr int kParts = 4;
#pragma unroll 1
    for (int first = 0; first < n * kParts; first += kThreads) {
        const int e = min((first + tid) / kParts, n - 1);
        const float mine = choice[e];
        int before = 0;
#pragma unroll 8
        for (int other = tid % kParts; other < n; other += kParts) {
            const float value = choice[other];
            before += value > mine || (value == mine && other < e);
        }
        before += __shfl_xor_sync(~0u, before, 1);
        before += __shfl_xor_sync(~0u, before, 2);
        if (before < p.topK) {
            chosen[before] = e;
            weights[before] = scores[e];
        }
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll 4
    for (int k = 0; k < p.topK; k++) sum += weights[k];
    const float divisor = p.normalize ? sum + 1e-20f : 1.0f;
#pragma unroll 1
    for (int k = tid; k < p.topK; k += kThreads) {
        p.experts[token * p.topK + k] = chosen[k];
        p.weights[token * p.topK + k] = weights[k] / divisor * p.scale;
    }
}

/// Floats in routeFew's shared memory before the biases.
__host__ __device__ inline int roomOfFew(const RouteParams& p) {
    const int product = 2 * ((p.in.cols + 3) / 4 * 4) + pieceSums(p.in.cols), choice = 4 * p.nExperts;
    return product > choice ? product : choice;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) routeFew(RouteParams p) {
    // Weights and input (dim each), sums of pieces, biases; later scores and choice, and biases.
    extern __shared__ __align__(16) float shared[];
    __shared__ bool last;
    const int expert = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
    const int tid = static_cast<int>(threadIdx.x), dim = p.in.cols, pitch = (dim + 3) / 4 * 4;
    const auto fetch = [&](float* to, const float* from) {
        eachPiece<kThreads, kWidth>(dim, [&](int i) { copyAsync<sizeof(float) * kWidth>(to + i, from + i); });
    };
    fetch(shared, p.weight + int64_t{expert} * dim);
    float* bias = p.bias ? shared + roomOfFew(p) : nullptr;
    if (bias)
        for (int e = tid; e < p.nExperts; e += kThreads) copyAsync<sizeof(float)>(bias + e, p.bias + e);
    // In this order: whoever starts behind this kernel finds what this one found, and the shared expert, which does not
    // wait for the choice, runs beside it.
    waitForPredecessor();
    letSuccessorStart();
    fetch(shared + pitch, p.in.f32 + int64_t{token} * dim);
    commitCopies();
    waitCopies<0>();
    __syncthreads();
    float* sums = shared + 2 * pitch;
    addPieces<kThreads>(ProductTerms{shared, shared + pitch}, dim, sums);
    __syncthreads();
    if (tid < 32) {
        const float sum = sumOfPieces(sums, dim);
        if (tid == 0) {
            p.logits[int64_t{token} * p.nExperts + expert] = sum;
            __threadfence();
            last = atomicAdd(&p.arrived[token], 1) == p.nExperts - 1;
        }
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (tid == 0) p.arrived[token] = 0;
#pragma unroll 1
    for (int e = tid; e < p.nExperts; e += kThreads) {
        const float logit = __ldcg(&p.logits[int64_t{token} * p.nExperts + e]);
        shared[e] = p.sigmoid ? sigmoid(logit) : logit;
    }
    chooseExperts<kThreads>(p, token, bias, shared, shared + p.nExperts);
}

constexpr int kTokens = 32, kExperts = 16, kStep = 64, kManyThreads = 512, kChooseThreads = 128;

__global__ void __launch_bounds__(kManyThreads) routeLogits(RouteParams p) {
    __shared__ float xs[kTokens * kStep], ws[kExperts * kStep];
    letSuccessorStart();
    waitForPredecessor();
    const int tid = static_cast<int>(threadIdx.x), dim = p.in.cols;
    const int lane = tid % 32, tile = tid / 32, token0 = tile / 4 * 8, expert0 = tile % 4 * 4;
    const int blockToken = static_cast<int>(blockIdx.x) * kTokens,
              blockExpert = static_cast<int>(blockIdx.y) * kExperts;
    float sums[8][4] = {};
    for (int piece = 0; piece < dim; piece += kSumPiece) {
        float pieces[8][4] = {};
        for (int begin = piece; begin < min(piece + kSumPiece, dim); begin += kStep) {
            for (int i = tid; i < (kTokens + kExperts) * kStep; i += kManyThreads) {
                const int row = i / kStep, col = begin + i % kStep;
                const int token = blockToken + row, expert = blockExpert + row - kTokens;
                float value = 0.0f;
                if (col < dim && row < kTokens && token < p.nTokens) value = p.in.f32[int64_t{token} * dim + col];
                if (col < dim && row >= kTokens && expert < p.nExperts) value = p.weight[int64_t{expert} * dim + col];
                (row < kTokens ? xs[i] : ws[i - kTokens * kStep]) = value;
            }
            __syncthreads();
#pragma unroll 1
            for (int i = lane; i < kStep; i += 32) {
                float x[8], w[4];
#pragma unroll
                for (int a = 0; a < 8; a++) x[a] = xs[(token0 + a) * kStep + i];
#pragma unroll
                for (int b = 0; b < 4; b++) w[b] = ws[(expert0 + b) * kStep + i];
#pragma unroll
                for (int a = 0; a < 8; a++)
#pragma unroll
                    for (int b = 0; b < 4; b++) pieces[a][b] += x[a] * w[b];
            }
            __syncthreads();
        }
#pragma unroll
        for (int a = 0; a < 8; a++)
#pragma unroll
            for (int b = 0; b < 4; b++) sums[a][b] += pieces[a][b];
    }
#pragma unroll
    for (int a = 0; a < 8; a++) {
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float sum = sums[a][b];
#pragma unroll
            for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
            const int token = blockToken + token0 + a, expert = blockExpert + expert0 + b;
            if (lane == 0 && token < p.nTokens && expert < p.nExperts)
                p.logits[int64_t{token} * p.nExperts + expert] = sum;
        }
    }
}

__global__ void __launch_bounds__(kChooseThreads) chooseMany(RouteParams p) {
    extern __shared__ float scores[];  // (4, nExperts)
    letSuccessorStart();
    waitForPredecessor();
    const int token = static_cast<int>(blockIdx.x);
#pragma unroll 1
    for (int e = static_cast<int>(threadIdx.x); e < p.nExperts; e += kChooseThreads) {
        const float logit = p.logits[int64_t{token} * p.nExperts + e];
        scores[e] = p.sigmoid ? sigmoid(logit) : logit;
    }
    chooseExperts<kChooseThreads>(p, token, p.bias, scores, scores + p.nExperts);
}

}  // namespace

void launchRoute(const RouteParams& p, const Stream& stream) {
    if (p.nTokens <= kFewRouted) {
        const size_t shared = sizeof(float) * (roomOfFew(p) + p.nExperts);
        launch(stream, p.in.cols % 4 == 0 ? routeFew<4> : routeFew<1>, dim3(p.nExperts, p.nTokens), kThreads, shared,
               p);
        return;
    }
    launch(stream, routeLogits, dim3(ceilDiv(p.nTokens, kTokens), ceilDiv(p.nExperts, kExperts)), kManyThreads, 0, p);
    launch(stream, chooseMany, p.nTokens, kChooseThreads, 4 * p.nExperts * sizeof(float), p);
}

}  // namespace dllama::gpu
