#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "gpu/kernels/kernels.hpp"

/// What kernels share.
namespace dllama::gpu {

/// Lets the next kernel start, and waits until everything before this one is visible.
__device__ inline void letSuccessorStart() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void waitForPredecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Waits for all threads of the cluster; what they wrote to shared memory is visible to all.
__device__ inline void syncCluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/// The value at this place in the shared memory of block `rank` of the cluster.
__device__ inline float4 loadFromBlock(const float4* shared, int rank) {
    float4 v{};
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .u32 at;\nmapa.shared::cluster.u32 at, %4, %5;\nld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [at];\n}"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank)
        : "memory");
#endif
    return v;
}
__device__ inline float loadFromBlock(const float* shared, int rank) {
    float value = 0.0f;
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .u32 at;\nmapa.shared::cluster.u32 at, %1, %2;\nld.shared::cluster.f32 %0, [at];\n}"
                 : "=f"(value)
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "r"(rank)
                 : "memory");
#endif
    return value;
}

/// 2^x to two units in the last place; 0 for -inf.
__device__ inline float fastExp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float warpSum(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
__device__ inline float warpMax(float x) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/// Weights are read once: past L1, by the read-only path.
__device__ inline uint4 loadStream16(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ inline uint2 loadStream8(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

/// Where column `col` of a Q80 row lies among its bytes.
__device__ inline int quantOffset(int col) {
    const int block = (col / 32) % 4, word = (col % 32) / 4;
    return col / kGroup * kGroup + block / 2 * 64 + word % 4 * 16 + block % 2 * 8 + word / 4 * 4 + col % 4;
}

/// The scale of a Q80 block, and what to multiply its values with, from its largest magnitude.
struct BlockScale {
    float stored, inverse;
};
__device__ inline BlockScale blockScale(float largest) {
    // largest / 127 with one rounding: the quotient's error is added.
    constexpr float kInverse = 1.0f / 127.0f;
    const float near = largest * kInverse, d = fmaf(fmaf(-127.0f, near, largest), kInverse, near);
    return {__half2float(__float2half_rn(d)), d == 0.0f ? 0.0f : __frcp_rn(d)};
}
/// x / d rounded to the nearest integer, even ones first, in the low byte: 1.5 * 2^23 leaves no room for fractions.
__device__ inline uint32_t quantBits(float x, float inverse) {
    return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0f));
}
__device__ inline int8_t quantValue(float x, float inverse) {
    return static_cast<int8_t>(quantBits(x, inverse));
}

/// Columns col.. of Q80 row `row`, kWidth (1 or 4) a lane; the 32 / kWidth lanes of a block take part together.
template <int kWidth>
__device__ inline void quantizePieces(const QuantRows& out, int64_t row, int col, const float (&x)[kWidth]) {
    const uint32_t lanes = kWidth == 1 ? ~0u : 0xffu << (threadIdx.x & 24);
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < kWidth; j++) largest = fmaxf(largest, fabsf(x[j]));
#pragma unroll
    for (int d = 16 / kWidth; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(lanes, largest, d));
    const BlockScale scale = blockScale(largest);
    int8_t* to = out.values + row * out.groups * kGroup + quantOffset(col);
    if constexpr (kWidth == 4) {
        const uint32_t low = __byte_perm(quantBits(x[0], scale.inverse), quantBits(x[1], scale.inverse), 0x0040);
        const uint32_t high = __byte_perm(quantBits(x[2], scale.inverse), quantBits(x[3], scale.inverse), 0x0040);
        *reinterpret_cast<uint32_t*>(to) = __byte_perm(low, high, 0x5410);
    } else {
        *to = quantValue(x[0], scale.inverse);
    }
    if (col % 32 == 0) out.scales[row * out.groups * 4 + col / 32] = scale.stored;
}
/// The warp's 32 values (lane = value) become block `col / 32` of Q80 row `row`.
__device__ inline void quantizeWarp(const QuantRows& out, int64_t row, int col, float x) {
    const float values[1] = {x};
    quantizePieces(out, row, col, values);
}

__device__ inline float activate(Activation act, float x) {
    if (act == Activation::Silu) return x / (1.0f + __expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

__device__ inline uint32_t packHalves(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

// Tensor-core products, in the fragment layouts of mma.m16n8k16 (f16) and mma.m16n8k32 (s8). Devices before 8.0 build
// them from smaller ones.

__device__ inline void mmaF16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

__device__ inline void mmaS8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    for (int half = 0; half < 2; half++) {
        for (int step = 0; step < 2; step++)
            asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                         : "+r"(c[2 * half]), "+r"(c[2 * half + 1])
                         : "r"(a[half + 2 * step]), "r"(step ? b1 : b0));
    }
#endif
}

__device__ inline uint32_t sharedAddress(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ inline void loadMatrices(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void loadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// Asynchronous copies to shared memory; before 8.0 they are ordinary ones.

template <int kBytes>
__device__ inline void copyAsync(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    if constexpr (kBytes == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(sharedAddress(shared)), "l"(global) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(sharedAddress(shared)), "l"(global), "n"(kBytes)
                     : "memory");
#else
    if constexpr (kBytes == 16)
        *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    else if constexpr (kBytes == 8)
        *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
    else
        *static_cast<uint32_t*>(shared) = *static_cast<const uint32_t*>(global);
#endif
}
__device__ inline void commitCopies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ inline void waitCopies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace dllama::gpu
