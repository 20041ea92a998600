#include "gpu/kernels/float-dot.cuh"
#include "gpu/kernels/quant-dot.cuh"

/// Routed experts of a few tokens, straight from where the router left their numbers, and a shared one beside them.
///
/// expertsUp: grid (outputs / 32) of the shared expert for each token, then of each token's experts; a block makes 32
/// hidden values of one expert and quantises them. 8 warps, three blocks a multiprocessor; where there are fewer blocks
/// than for two a multiprocessor (a part of the experts, of several GPUs), 16, so that as many loads are under way. The
/// shared expert's blocks come first and do not wait for the router. Shared memory: the token's quantised activations.
/// expertsDown: grid (outputs / 8, tokens), 4 warps of two outputs each; a warp runs over all experts of its token, the
/// lanes' groups of 128 columns following each other across experts, so that no lane idles at an expert's end. Shared
/// memory: the chosen experts' places and weights.
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

constexpr int kUpWarps = 8, kManyUpWarps = 16;

/// Blocks of expertsUp for one expert.
__host__ __device__ inline int upBlocks(int rows) {
    return (rows + 31) / 32;
}

template <int kWarps>
inline constexpr int kBlocksOfUp = kWarps == kUpWarps ? 3 : 2;  // a multiprocessor's

template <DType kType, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kIsFloat<kType> ? 1 : kBlocksOfUp<kWarps>)
    expertsUp(ExpertsDecodeParams p) {
    extern __shared__ __align__(16) int8_t activations[];  // values, then scales
    __shared__ float hidden[32];
    __shared__ Weights matrices[2];
    __shared__ int slots[kMaxExperts];
    const int ofShared = upBlocks(p.shared.gate.rows) * p.nTokens, block = static_cast<int>(blockIdx.x);
    const bool isShared = block < ofShared;
    if (!isShared && p.nTokens > kFewRouted) waitForPredecessor();
    const int perPair = upBlocks(isShared ? p.shared.gate.rows : p.w.gate.rows);
    const int index = isShared ? block : block - ofShared, pair = index / perPair, out0 = index % perPair * 32;
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
    const int64_t token = isShared ? pair : pair / p.topK;
    const int groups = p.in.q.groups;
    auto* scales = reinterpret_cast<float*>(activations + groups * kGroup);
    // The router of few tokens lets this kernel start when its input, which is also this one's, is there.
    if constexpr (!kIsFloat<kType>) {
        // Past L1, which may hold what was there before: not all blocks have waited.
        const auto* from = reinterpret_cast<const uint4*>(p.in.q.values + token * groups * kGroup);
        const auto* scalesFrom = reinterpret_cast<const float4*>(p.in.q.scales + token * groups * 4);
        for (int i = tid; i < groups * (kGroup / 16); i += kWarps * 32)
            reinterpret_cast<uint4*>(activations)[i] = __ldcg(from + i);
        for (int i = tid; i < groups; i += kWarps * 32) reinterpret_cast<float4*>(scales)[i] = __ldcg(scalesFrom + i);
    }
    if (!isShared) {
        for (int e = tid; e < p.w.nExperts; e += kWarps * 32) slots[e] = p.w.slots[e];
        __syncthreads();
        waitForPredecessor();
    }
    // In this order: what expertsDown finds when it starts, the router has finished.
    letSuccessorStart();
    const int slot = isShared ? 0 : slots[__ldcg(&p.experts[pair])];
    if (slot < 0) return;
    // In shared memory, not in registers: these hold weights that are under way.
    if (tid < 2) matrices[tid] = !isShared ? expertMatrix(p.w, tid, slot) : tid == 0 ? p.shared.gate : p.shared.up;
    __syncthreads();
    const Weights &gate = matrices[0], &up = matrices[1];
#pragma unroll 1
    for (int i = warp; i < 32; i += kWarps) {
        const int row = min(out0 + i, gate.rows - 1);
        float sums[2];
        if constexpr (kIsFloat<kType>) {
            for (int r = 0; r < 2; r++) {
                float sum[1];
                const Weights& w = r ? up : gate;
                dotFloatRow<kType>(floatRow<kType>(w, row), w.cols, p.in.f32 + token * p.in.cols, 1, sum);
                sums[r] = sum[0];
            }
        } else {
            const WeightRow rows[2] = {weightRow<kType>(gate, row), weightRow<kType>(up, row)};
            constexpr int kDepth = WeightChunk<kType>::kDepth * kUpWarps / kWarps;
            dotRows<kType, 2, kDepth>(rows, groups, activations, scales, sums, [] {});
        }
        if (lane == 0) hidden[i] = out0 + i < gate.rows ? activate(Activation::Silu, sums[0]) * sums[1] : 0.0f;
    }
    __syncthreads();
    if (warp != 0) return;
    const int col = out0 + lane;
    if constexpr (kIsFloat<kType>) {
        if (col < gate.rows) p.hidden.f32[int64_t{pair} * p.hidden.cols + col] = hidden[lane];
    } else {
        quantizeWarp(isShared ? p.shared.hidden : p.hidden.q, pair, col, hidden[lane]);
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
        constexpr int kDepth = WeightChunk<kType>::kDepth;
        const int groups = down.groups, t = lane % 4;
        const int ofShared = p.shared.down.rows > 0 ? p.shared.down.groups : 0, all = ofShared + groups * p.topK;
        const WeightRow first[2] = {weightRow<kType>(down, rows[0]), weightRow<kType>(down, rows[1])};
        const WeightRow shared[2] = {weightRow<kType>(p.shared.down, rows[0]),
                                     weightRow<kType>(p.shared.down, rows[1])};
        WeightChunk<kType> ring[kDepth][2];
        const auto fetch = [&](int s, int i) {
            if (i < ofShared) {
                for (int r = 0; r < 2; r++) ring[s][r].load(shared[r].data, shared[r].scales, i, t);
                return;
            }
            i -= ofShared;
            if (i >= groups * p.topK || slots[i / groups] < 0) return;
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
                const int i = base + 8 * s, k = i < ofShared ? -1 : (i - ofShared) / groups;
                if (i < all && (k < 0 || slots[k] >= 0)) {
                    const QuantRows& hidden = k < 0 ? p.shared.hidden : p.hidden.q;
                    const int64_t row = k < 0 ? token : token * p.topK + k;
                    const float weight = k < 0 ? 1.0f : weights[k];
                    ActivationChunk a;
                    a.load(hidden.values + row * hidden.groups * kGroup, hidden.scales + row * hidden.groups * 4,
                           k < 0 ? i : i - ofShared - k * groups, t);
#pragma unroll
                    for (int r = 0; r < 2; r++) sums[r] += dotChunk(ring[s][r], a) * weight;
                }
                fetch(s, i + 8 * kDepth);
            }
        }
#pragma unroll
        for (float& sum : sums) sum = warpSum(sum) * WeightChunk<kType>::kFactor;
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        if (lane == r && row0 + r < down.rows) {
            float& out = p.out[int64_t{token} * p.outCols + row0 + r];
            out = p.shared.down.rows > 0 ? sums[r] : out + sums[r];
        }
}

template <DType kType>
void launchTyped(const ExpertsDecodeParams& p, const Stream& stream) {
    const int blocks = (upBlocks(p.shared.gate.rows) + upBlocks(p.w.gate.rows) * p.topK) * p.nTokens;
    const size_t bytes = kIsFloat<kType> ? 0 : p.in.q.groups * (kGroup + 4 * sizeof(float));
    constexpr int kMany = kIsFloat<kType> ? kUpWarps : kManyUpWarps;
    if (blocks <= kBlocksOfUp<kMany> * stream.nSms)
        launch(stream, expertsUp<kType, kMany>, blocks, kMany * 32, bytes, p);
    else
        launch(stream, expertsUp<kType, kUpWarps>, blocks, kUpWarps * 32, bytes, p);
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
        default:
            withQuantType(p.w.gate.dtype, [&]<DType kType>() { launchTyped<kType>(p, stream); });
    }
}

}  // namespace dllama::gpu
