#include <algorithm>

#include "gpu/kernels/lane-sum.cuh"

/// Chooses experts. This file is compiled without fused multiply-add: the bits must be those of src/cpu/norms.cpp.
///
/// Few tokens, routeFew: grid (experts, tokens), 512 threads; a block multiplies one row of the router, adds the
/// products in the 32 lanes of backend.hpp, and the last block of a token to finish chooses. Shared memory: dim
/// products. Many tokens, routeLogits: grid (tokens / 32, experts / 32), 512 threads; 32 lanes x 16 tiles of 8 tokens
/// by 8 experts; then chooseMany, a warp per token.
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

/// The place of the largest value among all lanes' candidates; of equal values the lowest place.
__device__ inline int warpArgMax(float value, int place) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const float otherValue = __shfl_xor_sync(~0u, value, d);
        const int otherPlace = __shfl_xor_sync(~0u, place, d);
        if (otherValue > value || (otherValue == value && otherPlace < place)) {
            value = otherValue;
            place = otherPlace;
        }
    }
    return place;
}

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + portableExp(-x));
}

/// One warp. scores: nExperts values in shared memory, sigmoids or logits to be overwritten by their softmax; choice:
/// as much scratch.
__device__ __noinline__ void chooseExperts(const RouteParams& p, int token, float* scores, float* choice) {
    const int lane = static_cast<int>(threadIdx.x % 32), n = p.nExperts;
    constexpr float kOut = -INFINITY;
    if (!p.sigmoid) {
        float largest = kOut;
        for (int e = lane; e < n; e += 32) largest = fmaxf(largest, scores[e]);
        largest = warpMax(largest);
        for (int e = lane; e < n; e += 32) scores[e] = portableExp(scores[e] - largest);
        __syncwarp();
        float sum = 0.0f;  // in index order, as the CPU adds
        for (int e = 0; e < n; e++) sum += scores[e];
        __syncwarp();
        for (int e = lane; e < n; e += 32) scores[e] /= sum;
    }
    for (int e = lane; e < n; e += 32) choice[e] = scores[e] + (p.bias ? p.bias[e] : 0.0f);
    __syncwarp();

    if (p.nGroups > 1) {
        const int width = n / p.nGroups;
        // Lane g ranks group g: the sum of its two best.
        float rank = kOut;
        if (lane < p.nGroups) {
            float best = kOut, second = kOut;
#pragma unroll 1
            for (int i = 0; i < width; i++) {
                const float value = choice[lane * width + i];
                if (value > best) {
                    second = best;
                    best = value;
                } else {
                    second = fmaxf(second, value);
                }
            }
            rank = best + (width > 1 ? second : 0.0f);
        }
        int better = 0;
#pragma unroll 1
        for (int g = 0; g < p.nGroups; g++) {
            const float other = __shfl_sync(~0u, rank, g);
            better += other > rank || (other == rank && g < lane);
        }
        __syncwarp();
        if (lane < p.nGroups && better >= p.topGroups)
            for (int i = 0; i < width; i++) choice[lane * width + i] = kOut;
        __syncwarp();
    }

    float sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < p.topK; k++) {
        float best = kOut;
        int place = n;
#pragma unroll 1
        for (int e = lane; e < n; e += 32) {
            if (!isnan(choice[e]) && (place == n || choice[e] > best)) {
                best = choice[e];
                place = e;
            }
        }
        // Chosen experts are marked NaN. Scores that are all NaN must still name an expert.
        place = min(warpArgMax(best, place), n - 1);
        sum += scores[place];
        if (lane == 0) p.experts[token * p.topK + k] = place;
        __syncwarp();
        if (lane == place % 32) choice[place] = NAN;
        __syncwarp();
    }
    const float divisor = p.normalize ? sum + 1e-20f : 1.0f;
    for (int k = lane; k < p.topK; k += 32)
        p.weights[token * p.topK + k] = scores[p.experts[token * p.topK + k]] / divisor * p.scale;
}

__global__ void __launch_bounds__(kThreads) routeFew(RouteParams p) {
    extern __shared__ float products[];  // (dim + 1), later scores and choice (nExperts each)
    __shared__ bool last;
    const int expert = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
    const int tid = static_cast<int>(threadIdx.x), dim = p.in.cols;
    letSuccessorStart();
    const float* w = p.weight + int64_t{expert} * dim;
    inBatches<kThreads>(
        dim, [&](int i) { return w[i]; }, [&](int i, float value) { products[i] = value; });
    waitForPredecessor();
    const float* x = p.in.f32 + int64_t{token} * dim;
    inBatches<kThreads>(
        dim, [&](int i) { return x[i]; }, [&](int i, float value) { products[i] *= value; });
    const float sum = laneSum(products, dim);
    if (tid == 0) {
        p.logits[int64_t{token} * p.nExperts + expert] = sum;
        __threadfence();
        last = atomicAdd(&p.arrived[token], 1) == p.nExperts - 1;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int e = tid; e < p.nExperts; e += kThreads) {
        const float logit = __ldcg(&p.logits[int64_t{token} * p.nExperts + e]);
        products[e] = p.sigmoid ? sigmoid(logit) : logit;
    }
    __syncthreads();
    if (tid >= 32) return;
    if (tid == 0) p.arrived[token] = 0;
    chooseExperts(p, token, products, products + p.nExperts);
}

constexpr int kTile = 32, kStep = 64, kManyThreads = 512;

__global__ void __launch_bounds__(kManyThreads) routeLogits(RouteParams p) {
    __shared__ float xs[kTile * kStep], ws[kTile * kStep];
    letSuccessorStart();
    waitForPredecessor();
    const int tid = static_cast<int>(threadIdx.x), dim = p.in.cols;
    const int lane = tid % 32, tile = tid / 32, token0 = tile / 4 * 8, expert0 = tile % 4 * 8;
    const int blockToken = static_cast<int>(blockIdx.x) * kTile, blockExpert = static_cast<int>(blockIdx.y) * kTile;
    float sums[8][8] = {};
    for (int begin = 0; begin < dim; begin += kStep) {
        for (int i = tid; i < kTile * kStep; i += kManyThreads) {
            const int row = i / kStep, col = begin + i % kStep;
            const int token = blockToken + row, expert = blockExpert + row;
            const bool inside = col < dim;
            xs[row * kStep + i % kStep] = inside && token < p.nTokens ? p.in.f32[int64_t{token} * dim + col] : 0.0f;
            ws[row * kStep + i % kStep] = inside && expert < p.nExperts ? p.weight[int64_t{expert} * dim + col] : 0.0f;
        }
        __syncthreads();
#pragma unroll 1
        for (int i = lane; i < kStep; i += 32) {
            float x[8], w[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] = xs[(token0 + j) * kStep + i];
                w[j] = ws[(expert0 + j) * kStep + i];
            }
#pragma unroll
            for (int a = 0; a < 8; a++)
#pragma unroll
                for (int b = 0; b < 8; b++) sums[a][b] += x[a] * w[b];
        }
        __syncthreads();
    }
#pragma unroll
    for (int a = 0; a < 8; a++) {
#pragma unroll
        for (int b = 0; b < 8; b++) {
            float sum = sums[a][b];
#pragma unroll
            for (int width = 16; width > 0; width /= 2) sum += __shfl_down_sync(~0u, sum, width);
            const int token = blockToken + token0 + a, expert = blockExpert + expert0 + b;
            if (lane == 0 && token < p.nTokens && expert < p.nExperts)
                p.logits[int64_t{token} * p.nExperts + expert] = sum;
        }
    }
}

__global__ void __launch_bounds__(32) chooseMany(RouteParams p) {
    extern __shared__ float scores[];  // (2, nExperts)
    letSuccessorStart();
    waitForPredecessor();
    const int token = static_cast<int>(blockIdx.x);
    for (int e = static_cast<int>(threadIdx.x); e < p.nExperts; e += 32) {
        const float logit = p.logits[int64_t{token} * p.nExperts + e];
        scores[e] = p.sigmoid ? sigmoid(logit) : logit;
    }
    __syncwarp();
    chooseExperts(p, token, scores, scores + p.nExperts);
}

}  // namespace

void launchRoute(const RouteParams& p, const Stream& stream) {
    if (p.nTokens <= 16) {
        const size_t shared = sizeof(float) * std::max(p.in.cols + 1, 2 * p.nExperts);
        launch(stream, routeFew, dim3(p.nExperts, p.nTokens), kThreads, shared, p);
        return;
    }
    launch(stream, routeLogits, dim3(ceilDiv(p.nTokens, kTile), ceilDiv(p.nExperts, kTile)), kManyThreads, 0, p);
    launch(stream, chooseMany, p.nTokens, 32, 2 * p.nExperts * sizeof(float), p);
}

}  // namespace dllama::gpu
