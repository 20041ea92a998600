#pragma once

#include "gpu/kernels/quant-formats.cuh"

/// Tiles of 16 weight rows times up to 8 rows of activations for each of kTokenTiles: an m16n8k32 product of signed
/// bytes a block of 32 columns, whose exact integer sum is then scaled. Lane 4g + t holds weight rows g and g + 8
/// (`upper` and `lower`), reads activation row g of a token tile, and gets the sums of both weight rows for tokens 2t
/// and 2t + 1. Weights go from memory to registers, some groups ahead, so no warp waits for another.
namespace dllama::gpu {

constexpr int kTileRows = 16;

/// d = a b + 1.5 * 2^23 as a float's bits: an integer that a subtraction turns into a float, where a conversion would
/// take a unit with a quarter of the rate.
constexpr int kIntegerBase = 0x4b400000;
__device__ inline void mmaS8FromBase(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(kIntegerBase));
#else
    for (int& sum : d) sum = kIntegerBase;
    mmaS8(d, a, b0, b1);
#endif
}
__device__ inline float fromBase(int bits) {
    return __int_as_float(bits) - __int_as_float(kIntegerBase);
}

/// One group of columns of a tile. values(n): this lane's 16 bytes of the group in row g of token tile n (the other 16
/// stand 64 bytes further); scales(n, i): the group's four scales of token 2t + i.
template <DType kType, int kTokenTiles, typename Values, typename Scales>
__device__ inline void addGroup(const WeightChunk<kType>& upper, const WeightChunk<kType>& lower, const Values& values,
                                const Scales& scales, int tokenTiles, float (&sums)[kTokenTiles][4]) {
    const float4 upperScales = widenScales(upper.scales), lowerScales = widenScales(lower.scales);
    uint32_t a[4][4];
#pragma unroll
    for (int b = 0; b < 4; b++) WeightChunk<kType>::operandA(upper, lower, b, a[b]);
#pragma unroll
    for (int n = 0; n < kTokenTiles; n++) {
        if (n > 0 && n >= tokenTiles) break;
        const int8_t* at = values(n);
        const uint4 first = *reinterpret_cast<const uint4*>(at), second = *reinterpret_cast<const uint4*>(at + 64);
        const float4 left = scales(n, 0), right = scales(n, 1);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const uint4 half = b < 2 ? first : second;
            int d[4];
            mmaS8FromBase(d, a[b], b % 2 ? half.z : half.x, b % 2 ? half.w : half.y);
            const float up = component(upperScales, b), low = component(lowerScales, b);
            const float l = component(left, b), r = component(right, b);
            sums[n][0] += fromBase(d[0]) * (up * l);
            sums[n][1] += fromBase(d[1]) * (up * r);
            sums[n][2] += fromBase(d[2]) * (low * l);
            sums[n][3] += fromBase(d[3]) * (low * r);
        }
    }
}

/// The weights of a tile: where its two rows of this lane begin.
struct TileRows {
    const uint8_t *upper, *lower;
    const __half *upperScales, *lowerScales;
};

/// A warp's tiles, one after the other, each from group `begin` to `end`; kDepth groups are under way, also from one
/// tile to the next. rowsOf(i) finds the i-th tile's weights; add(upper, lower, group, i) takes one group, finish(i)
/// ends a tile. `atStart` is called when the first loads are under way.
template <DType kType, int kDepth, typename RowsOf, typename AtStart, typename Add, typename Finish>
__device__ inline void walkTiles(int nTiles, int begin, int end, const RowsOf& rowsOf, const AtStart& atStart,
                                 const Add& add, const Finish& finish) {
    const int t = static_cast<int>(threadIdx.x % 4);
    WeightChunk<kType> ring[kDepth][2];
    TileRows next{};
    int nextTile = 0, nextGroup = begin;
    if (nTiles > 0) next = rowsOf(0);
    const auto fetch = [&](int slot) {
        if (nextTile >= nTiles) return;
        ring[slot][0].load(next.upper, next.upperScales, nextGroup, t);
        ring[slot][1].load(next.lower, next.lowerScales, nextGroup, t);
        if (++nextGroup < end) return;
        nextGroup = begin;
        if (++nextTile < nTiles) next = rowsOf(nextTile);
    };
#pragma unroll
    for (int slot = 0; slot < kDepth; slot++) fetch(slot);
    atStart();
    int tile = 0, group = begin;
    while (tile < nTiles) {
#pragma unroll
        for (int slot = 0; slot < kDepth; slot++) {
            if (tile >= nTiles) break;
            add(ring[slot][0], ring[slot][1], group, tile);
            fetch(slot);
            if (++group < end) continue;
            finish(tile);
            group = begin;
            tile++;
        }
    }
}

}  // namespace dllama::gpu
