#include "gpu/kernels/rope.cuh"

/// Norms of q and k heads, rotation, and the store into the paged cache. Grid: (tokens, heads / 8); a warp per head of
/// q, k and v. Shared memory: each warp's head as f32.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps * 32) ropeStore(RopeStoreParams p) {
    extern __shared__ float heads[];  // (kWarps, headDim)
    letSuccessorStart();
    waitForPredecessor();
    const int token = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32);
    const int head = static_cast<int>(blockIdx.y) * kWarps + warp, d = p.headDim;
    if (head >= p.nHeads + 2 * p.nKvHeads) return;
    float* values = p.qkv + int64_t{token} * p.qkvCols + head * d;
    float* x = heads + warp * d;
    for (int i = lane; i < d; i += 32) x[i] = values[i];
    __syncwarp();

    const bool isQ = head < p.nHeads, isV = head >= p.nHeads + p.nKvHeads;
    if (isQ ? p.hasQNorm : !isV && p.hasKNorm) normalizeHead(isQ ? p.qNorm : p.kNorm, x, d);
    if (!isV)
        rotateHead(p, x, [&](int part, int pair) {
            const int half = p.rotaryDim / 2;
            const int64_t at = int64_t{p.ropePositions[part * p.nTokens + token]} * half + pair;
            return make_float2(p.cos[at], p.sin[at]);
        });
    if (isQ) {
        for (int i = lane; i < d; i += 32) values[i] = x[i];
        return;
    }
    const int kvHead = isV ? head - p.nHeads - p.nKvHeads : head - p.nHeads, position = p.positions[token];
    const int64_t block = p.blockTables[int64_t{p.sequences[token]} * p.maxBlocks + position / kKvBlockPositions];
    const int64_t at = ((block * p.nKvHeads + kvHead) * kKvBlockPositions + position % kKvBlockPositions) * d;
    void* cache = isV ? p.v : p.k;
#pragma unroll 2
    for (int i = lane; i < d; i += 32) {
        if (!isV) values[i] = x[i];
        if (p.f32Cache)
            static_cast<float*>(cache)[at + i] = x[i];
        else
            static_cast<__half*>(cache)[at + i] = __float2half_rn(x[i]);
    }
}

}  // namespace

void launchRopeStore(const RopeStoreParams& p, const Stream& stream) {
    const dim3 grid(p.nTokens, ceilDiv(p.nHeads + 2 * p.nKvHeads, kWarps));
    launch(stream, ropeStore, grid, kWarps * 32, kWarps * p.headDim * sizeof(float), p);
}

}  // namespace dllama::gpu
