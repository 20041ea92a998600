#pragma once

#include "gpu/kernels/quant-dot.cuh"

/// Weights through shared memory by the copy engine (9.0 on). One thread asks for a stretch of rows before the
/// predecessor has finished, and no registers are held for what is under way: an SM keeps some 200 KB coming while it
/// would otherwise wait for norms, attention or the end of other blocks.
namespace dllama::gpu {

/// Counts the bytes of one stretch as they arrive.
using Arrival = uint64_t;

__device__ inline void initArrival(Arrival* arrival) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(sharedAddress(arrival))
        : "memory");
#endif
}
__device__ inline void expectBytes(Arrival* arrival, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(arrival)), "r"(bytes)
                 : "memory");
#endif
}
/// 16-byte aligned, a multiple of 16 bytes.
__device__ inline void copyBulk(void* shared, const void* global, uint32_t bytes, Arrival* arrival) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     sharedAddress(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(sharedAddress(arrival))
                 : "memory");
#endif
}
/// Waits for the stretch number `turn` (0, 1, ...) of this place.
__device__ inline void waitArrival(Arrival* arrival, int turn) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
            "r"(sharedAddress(arrival)),
        "r"(turn & 1)
        : "memory");
#endif
}

/// kRows rows of a matrix in shared memory: data, then scales.
template <DType kType, int kRows>
struct StagedRows {
    static constexpr int kGroupBytes = WeightChunk<kType>::kGroupBytes;
    __host__ __device__ static constexpr int bytes(int groups) { return kRows * groups * (kGroupBytes + 8); }

    /// One thread asks for them; their first row is a multiple of kRows.
    __device__ static void ask(uint8_t* to, const Weights& w, int row0, Arrival* arrival) {
        const WeightRow from = weightRow<kType>(w, row0);
        const uint32_t data = kRows * w.groups * kGroupBytes;
        copyBulk(to, from.data, data, arrival);
        copyBulk(to + data, from.scales, kRows * w.groups * 8, arrival);
    }
    /// Lane t's share of a group of one row.
    __device__ static WeightChunk<kType> chunk(const uint8_t* staged, int groups, int row, int group, int t) {
        const auto* at = reinterpret_cast<const uint4*>(staged + (row * groups + group) * kGroupBytes + t * 16);
        WeightChunk<kType> w;
        w.loadShared(at);
        w.scales = reinterpret_cast<const uint2*>(staged + kRows * groups * kGroupBytes)[row * groups + group];
        return w;
    }
    /// sums += the dot products with groups first, first + stride, ... of the activations.
    __device__ static void dot(const uint8_t* staged, int groups, int first, int stride, const QuantRows& in,
                               float (&sums)[kRows]) {
        const int lane = static_cast<int>(threadIdx.x % 32), t = lane % 4;
#pragma unroll 2
        for (int group = first + lane / 4; group < groups; group += stride) {
            ActivationChunk a;
            a.load(in.values, in.scales, group, t);
#pragma unroll
            for (int r = 0; r < kRows; r++) sums[r] += dotChunk(chunk(staged, groups, r, group, t), a);
        }
    }
};

/// The lanes' sums of kRows (a power of two, at most 32) rows: lane i gets that of row i / (32 / kRows).
template <int kRows>
__device__ inline float sumRows(float (&sums)[kRows]) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int width = 16;
#pragma unroll
    for (int n = kRows / 2; n > 0; n /= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            const bool upper = lane & width;
            const float give = upper ? sums[i] : sums[i + n], keep = upper ? sums[i + n] : sums[i];
            sums[i] = keep + __shfl_xor_sync(~0u, give, width);
        }
        width /= 2;
    }
    float sum = sums[0];
#pragma unroll
    for (int d = 16 / kRows; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

}  // namespace dllama::gpu
