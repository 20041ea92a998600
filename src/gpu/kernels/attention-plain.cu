#include "gpu/kernels/device.cuh"

/// Attention of any head size over an F16 or F32 cache: what the tensor-core kernels do not cover. Grid: (heads,
/// tokens); 8 warps, each takes every eighth position with its own softmax; a lane keeps the values lane, lane + 32,
/// ... of the head. Shared memory: the warps' results (8, headDim + 2).
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8, kMaxPerLane = 16;

template <typename Cache>
__global__ void __launch_bounds__(kWarps * 32) attentionPlain(AttentionParams p) {
    extern __shared__ float results[];
    letSuccessorStart();
    waitForPredecessor();
    const int head = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y), d = p.headDim;
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const int kvHead = (head + p.headOffset) / p.group, contextLength = p.contextLengths[token];
    const int32_t* table = p.blockTables + int64_t{p.sequences[token]} * p.maxBlocks;
    const float scale = 1.0f / sqrtf(static_cast<float>(d));
    float q[kMaxPerLane], mixed[kMaxPerLane];
#pragma unroll
    for (int i = 0; i < kMaxPerLane; i++) {
        const int col = lane + 32 * i;
        q[i] = col < d ? p.qkv[int64_t{token} * p.qkvCols + head * d + col] * scale : 0.0f;
        mixed[i] = 0.0f;
    }
    float largest = -INFINITY, sum = 0.0f;
    for (int position = warp; position < contextLength; position += kWarps) {
        const int64_t block = table[position / kKvBlockPositions];
        const int64_t row = (block * p.nKvHeads + kvHead) * kKvBlockPositions + position % kKvBlockPositions;
        const Cache* k = static_cast<const Cache*>(p.k) + row * d;
        const Cache* v = static_cast<const Cache*>(p.v) + row * d;
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < kMaxPerLane; i++)
            if (lane + 32 * i < d) score += q[i] * static_cast<float>(k[lane + 32 * i]);
        score = warpSum(score);
        const float now = fmaxf(largest, score), keep = __expf(largest - now), share = __expf(score - now);
        largest = now;
        sum = sum * keep + share;
#pragma unroll
        for (int i = 0; i < kMaxPerLane; i++)
            if (lane + 32 * i < d) mixed[i] = mixed[i] * keep + share * static_cast<float>(v[lane + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < kMaxPerLane; i++)
        if (lane + 32 * i < d) results[warp * (d + 2) + lane + 32 * i] = mixed[i];
    if (lane == 0) {
        results[warp * (d + 2) + d] = largest;
        results[warp * (d + 2) + d + 1] = sum;
    }
    __syncthreads();
    float most = -INFINITY;
    for (int w = 0; w < kWarps; w++) most = fmaxf(most, results[w * (d + 2) + d]);
    for (int col = static_cast<int>(threadIdx.x); col < d; col += kWarps * 32) {
        float total = 0.0f, value = 0.0f;
        for (int w = 0; w < kWarps; w++) {
            const float share = __expf(results[w * (d + 2) + d] - most);
            total += share * results[w * (d + 2) + d + 1];
            value += share * results[w * (d + 2) + col];
        }
        p.out.f32[int64_t{token} * p.out.cols + head * d + col] = value / total;
    }
}

}  // namespace

void launchAttentionPlain(const AttentionParams& p, const Stream& stream) {
    const size_t shared = kWarps * (p.headDim + 2) * sizeof(float);
    launch(stream, p.f32Cache ? attentionPlain<float> : attentionPlain<__half>, dim3(p.nHeads, p.nTokens), kWarps * 32,
           shared, p);
    if (p.out.q.values) launchQuantize({p.out.f32, p.nTokens, p.nHeads * p.headDim, p.out.q}, stream);
}

}  // namespace dllama::gpu
