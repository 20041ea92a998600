#include "gpu/kernels/float-dot.cuh"
#include "gpu/kernels/quant-dot.cuh"

/// Routed experts of a few tokens, straight from where the router left their numbers.
///
/// expertsUp: grid (outputs / 32, tokens * topK), 8 warps; a block makes 32 hidden values of one expert and quantises
/// them. expertsDown: grid (outputs / 8, tokens), 4 warps of two outputs each; a warp runs over all experts of its
/// token, the lanes' groups of 128 columns following each other across experts, so that no lane idles at an expert's
/// end. Shared memory: the chosen experts' places and weights.
namespace dllama::gpu {

namespace {

template <DType kType>
inline constexpr bool kIsFloat = kType == DType::F32 || kType == DType::F16 || kType == DType::BF16;

/// Matrix `which` (0 gate, 1 up, 2 down) of the expert in `slot`.
__device__ inline Weights expertMatrix(const ExpertWeights& w, int which, int slot) {
    Weights m = which == 0 ? w.gate : which == 1 ? w.up : w.down;
    m.data += slot * w.dataStride[which];
    m.scales += slot * w.scaleStride[which];
    return m;
}

template <DType kType>
__device__ inline const uint8_t* floatRow(const Weights& w, int row) {
    return w.data + int64_t{row} * w.groups * kGroup * kValueBytes<kType>;
}

constexpr int kUpWarps = 8;

template <DType kType>
__global__ void __launch_bounds__(kUpWarps * 32, kIsFloat<kType> ? 1 : 3) expertsUp(ExpertsDecodeParams p) {
    __shared__ float hidden[32];
    // In this order: what expertsDown finds when it starts, the router has finished.
    waitForPredecessor();
    letSuccessorStart();
    const int pair = static_cast<int>(blockIdx.y), out0 = static_cast<int>(blockIdx.x) * 32;
    const int slot = p.w.slots[p.experts[pair]];
    if (slot < 0) return;
    const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    const Weights gate = expertMatrix(p.w, 0, slot), up = expertMatrix(p.w, 1, slot);
    const int64_t token = pair / p.topK;
#pragma unroll 1
    for (int i = 2 * warp; i < 32; i += 2 * kUpWarps) {
        const int rows[2] = {min(out0 + i, gate.rows - 1), min(out0 + i + 1, gate.rows - 1)};
        float sums[4];
        if constexpr (kIsFloat<kType>) {
            for (int r = 0; r < 4; r++) {
                float sum[1];
                const Weights& w = r % 2 ? up : gate;
                dotFloatRow<kType>(floatRow<kType>(w, rows[r / 2]), w.cols, p.in.f32 + token * p.in.cols, 1, sum);
                sums[r] = sum[0];
            }
        } else {
            const WeightRow weights[4] = {weightRow<kType>(gate, rows[0]), weightRow<kType>(up, rows[0]),
                                          weightRow<kType>(gate, rows[1]), weightRow<kType>(up, rows[1])};
            const int groups = gate.groups;
            dotRows<kType, 4, kType == DType::Q40 ? 2 : 1>(weights, groups, p.in.q.values + token * groups * kGroup,
                                                           p.in.q.scales + token * groups * 4, sums, [] {});
        }
        if (lane < 2)
            hidden[i + lane] =
                out0 + i + lane < gate.rows ? activate(Activation::Silu, sums[2 * lane]) * sums[2 * lane + 1] : 0.0f;
    }
    __syncthreads();
    if (warp != 0) return;
    const int col = out0 + lane;
    if constexpr (kIsFloat<kType>) {
        if (col < gate.rows) p.hidden.f32[int64_t{pair} * p.hidden.cols + col] = hidden[lane];
    } else {
        quantizeWarp(p.hidden.q, pair, col, hidden[lane]);
    }
}

constexpr int kDownWarps = 4, kMaxTopK = 64;

template <DType kType>
__global__ void __launch_bounds__(kDownWarps * 32) expertsDown(ExpertsDecodeParams p) {
    __shared__ int slots[kMaxTopK];
    __shared__ float weights[kMaxTopK];
    letSuccessorStart();
    const int token = static_cast<int>(blockIdx.y), tid = static_cast<int>(threadIdx.x);
    // expertsUp lets this kernel start when the router has finished. Past L1, which may hold what was there before.
    if (tid < p.topK) {
        slots[tid] = p.w.slots[__ldcg(&p.experts[token * p.topK + tid])];
        weights[tid] = __ldcg(&p.weights[token * p.topK + tid]);
    }
    __syncthreads();
    const int lane = tid % 32, row0 = (static_cast<int>(blockIdx.x) * kDownWarps + tid / 32) * 2;
    const Weights& down = p.w.down;
    const int rows[2] = {min(row0, down.rows - 1), min(row0 + 1, down.rows - 1)};
    float sums[2] = {};
    if constexpr (kIsFloat<kType>) {
        waitForPredecessor();
        for (int k = 0; k < p.topK; k++) {
            if (slots[k] < 0) continue;
            const Weights w = expertMatrix(p.w, 2, slots[k]);
            const float* x = p.hidden.f32 + (int64_t{token} * p.topK + k) * p.hidden.cols;
            for (int r = 0; r < 2; r++) {
                float sum[1];
                dotFloatRow<kType>(floatRow<kType>(w, rows[r]), w.cols, x, 1, sum);
                sums[r] += sum[0] * weights[k];
            }
        }
    } else {
        constexpr int kDepth = kType == DType::Q40 ? 4 : 2;
        const int groups = down.groups, t = lane % 4, all = groups * p.topK;
        const WeightRow first[2] = {weightRow<kType>(down, rows[0]), weightRow<kType>(down, rows[1])};
        WeightChunk<kType> ring[kDepth][2];
        const auto fetch = [&](int s, int i) {
            if (i >= all || slots[i / groups] < 0) return;
            const int64_t slot = slots[i / groups];
            for (int r = 0; r < 2; r++)
                ring[s][r].load(first[r].data + slot * p.w.dataStride[2], first[r].scales + slot * p.w.scaleStride[2],
                                i % groups, t);
        };
#pragma unroll
        for (int s = 0; s < kDepth; s++) fetch(s, lane / 4 + 8 * s);
        waitForPredecessor();
        for (int base = lane / 4; base < all; base += 8 * kDepth) {
#pragma unroll
            for (int s = 0; s < kDepth; s++) {
                const int i = base + 8 * s;
                if (i < all && slots[i / groups] >= 0) {
                    const int64_t row = int64_t{token} * p.topK + i / groups;
                    ActivationChunk a;
                    a.load(p.hidden.q.values + row * groups * kGroup, p.hidden.q.scales + row * groups * 4, i % groups,
                           t);
#pragma unroll
                    for (int r = 0; r < 2; r++) sums[r] += dotChunk(ring[s][r], a) * weights[i / groups];
                }
                fetch(s, i + 8 * kDepth);
            }
        }
#pragma unroll
        for (float& sum : sums) sum = warpSum(sum) * WeightChunk<kType>::kFactor;
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (lane == r && row0 + r < down.rows) p.out[int64_t{token} * p.outCols + row0 + r] += sums[r];
}

template <DType kType>
void launchTyped(const ExpertsDecodeParams& p, const Stream& stream) {
    launch(stream, expertsUp<kType>, dim3(ceilDiv(p.w.gate.rows, 32), p.nTokens * p.topK), kUpWarps * 32, 0, p);
    launch(stream, expertsDown<kType>, dim3(ceilDiv(p.w.down.rows, kDownWarps * 2), p.nTokens), kDownWarps * 32, 0, p);
}

}  // namespace

void launchExpertsDecode(const ExpertsDecodeParams& p, const Stream& stream) {
    switch (p.w.gate.dtype) {
        case DType::F32:
            return launchTyped<DType::F32>(p, stream);
        case DType::F16:
            return launchTyped<DType::F16>(p, stream);
        case DType::BF16:
            return launchTyped<DType::BF16>(p, stream);
        case DType::Q80:
            return launchTyped<DType::Q80>(p, stream);
        case DType::Q40:
            return launchTyped<DType::Q40>(p, stream);
    }
}

}  // namespace dllama::gpu
