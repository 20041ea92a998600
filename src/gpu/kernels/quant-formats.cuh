#pragma once

#include "gpu/kernels/device.cuh"

/// The quantised types as kernels see them: all that is known of a type stands here, and a new one is a further
/// specialisation and a line in withQuantType(). Kernels are written over a lane's chunk of a group of 128 columns
/// (layouts: kernels.hpp), which has a scale for each 32 values: a type of longer blocks repeats its scale when its
/// weights are repacked.
namespace dllama::gpu {

/// Four signed bytes that are 16 times the low (high) nibbles.
__device__ inline int lowNibbles(uint32_t word) {
    return static_cast<int>((word << 4) & 0xf0f0f0f0u);
}
__device__ inline int highNibbles(uint32_t word) {
    return static_cast<int>(word & 0xf0f0f0f0u);
}

__device__ inline uint32_t component(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
__device__ inline float component(const float4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

__device__ inline float4 widenScales(uint2 halves) {
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&halves.x));
    const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&halves.y));
    return make_float4(a.x, a.y, b.x, b.y);
}
__device__ inline __half2 asHalf2(uint32_t bits) {
    return *reinterpret_cast<__half2*>(&bits);
}
__device__ inline uint32_t asBits(__half2 pair) {
    return *reinterpret_cast<uint32_t*>(&pair);
}

/// Unaligned 16-bit read: blocks of files are 18 and 34 bytes.
__device__ inline uint16_t read16(const uint8_t* p) {
    return static_cast<uint16_t>(p[0] | (p[1] << 8));
}
__device__ inline uint32_t read32(const uint8_t* p) {
    return read16(p) | static_cast<uint32_t>(read16(p + 2)) << 16;
}

/// Lane t's share of one group of one weight row, and what else depends on the type:
///   kStoredBytes            of a block of 32 in files, which begins with its f16 scale
///   kGroupBytes, kPlanes    of a group in our layout; pieces of 64 bytes, of which each lane has 16
///   kDepth                  groups that a lane keeps under way where it loads them to registers
///   kFactor                 what the integer products must be multiplied with
///   storedValue             value j of a stored block, without its scale
///   repack                  puts a stored block (null: zeros) into block b of a group
///   load                    from a row's groups and scales
///   dots                    dot products with blocks 0..3; a and b hold the activations of blocks 0, 1 and 2, 3
///   operandA                block b of two rows as operand A of mma.m16n8k32: values 4t.. and 16 + 4t..
///   widen                   half a block of a plane as operand B of mma.m16n8k16, times the scale
///   value                   an integer of the lane's 4 of half a block
template <DType kType>
struct WeightChunk;

template <>
struct WeightChunk<DType::Q40> {
    static constexpr int kStoredBytes = 18, kGroupBytes = 64, kPlanes = 1, kDepth = 4;
    static constexpr float kFactor = 1.0f / 16.0f;
    uint4 words;
    uint2 scales;

    static __device__ float storedValue(const uint8_t* block, int j) {
        const int nibble = j < 16 ? block[2 + j] & 15 : block[2 + j - 16] >> 4;
        return static_cast<float>(nibble - 8);
    }
    static __device__ void repack(const uint8_t* stored, uint8_t* group, int b) {
        for (int t = 0; t < 4; t++)
            // Adding 8 modulo 16 makes the offset nibbles signed.
            reinterpret_cast<uint32_t*>(group)[t * 4 + b] = stored ? read32(stored + 2 + 4 * t) ^ 0x88888888u : 0;
    }
    __device__ void load(const uint8_t* row, const __half* rowScales, int group, int t) {
        words = loadStream16(row + int64_t{group} * 64 + t * 16);
        scales = loadStream8(rowScales + group * 4);
    }
    /// Of a row in shared memory.
    __device__ void loadShared(const uint4* at) { words = at[0]; }
    __device__ int4 dots(uint4 a, uint4 b) const {
        const auto dot = [](uint32_t w, uint32_t low, uint32_t high) {
            return __dp4a(highNibbles(w), static_cast<int>(high), __dp4a(lowNibbles(w), static_cast<int>(low), 0));
        };
        return make_int4(dot(words.x, a.x, a.y), dot(words.y, a.z, a.w), dot(words.z, b.x, b.y),
                         dot(words.w, b.z, b.w));
    }
    static __device__ void operandA(const WeightChunk& upper, const WeightChunk& lower, int b, uint32_t (&a)[4]) {
        const uint32_t u = component(upper.words, b), l = component(lower.words, b);
        a[0] = static_cast<uint32_t>(lowNibbles(u));
        a[1] = static_cast<uint32_t>(lowNibbles(l));
        a[2] = static_cast<uint32_t>(highNibbles(u));
        a[3] = static_cast<uint32_t>(highNibbles(l));
    }
    /// Integers enter the mantissa of 1024, which is then subtracted: exact.
    template <int kHalf>
    static __device__ void widen(const uint4& plane, int b, __half2 scale, uint32_t (&out)[2]) {
        const uint32_t word = component(plane, b), next = word >> 8;
        if constexpr (kHalf == 0) {
            const __half2 offset = __floats2half2_rn(1032.0f, 1032.0f);
            out[0] = asBits(__hmul2(__hsub2(asHalf2((word & 0x000f000fu) ^ 0x64086408u), offset), scale));
            out[1] = asBits(__hmul2(__hsub2(asHalf2((next & 0x000f000fu) ^ 0x64086408u), offset), scale));
        } else {
            const __half2 offset = __floats2half2_rn(-72.0f, -72.0f), sixteenth = __floats2half2_rn(0.0625f, 0.0625f);
            out[0] = asBits(__hmul2(__hfma2(asHalf2((word & 0x00f000f0u) ^ 0x64806480u), sixteenth, offset), scale));
            out[1] = asBits(__hmul2(__hfma2(asHalf2((next & 0x00f000f0u) ^ 0x64806480u), sixteenth, offset), scale));
        }
    }
    __device__ int value(int b, int half, int byte) const {
        return static_cast<int>(component(words, b) << (28 - 8 * byte - 4 * half)) >> 28;
    }
};

template <>
struct WeightChunk<DType::Q80> {
    static constexpr int kStoredBytes = 34, kGroupBytes = 128, kPlanes = 2, kDepth = 2;
    static constexpr float kFactor = 1.0f;
    uint4 first, second;
    uint2 scales;

    static __device__ float storedValue(const uint8_t* block, int j) { return static_cast<int8_t>(block[2 + j]); }
    static __device__ void repack(const uint8_t* stored, uint8_t* group, int b) {
        for (int word = 0; word < 8; word++)
            *reinterpret_cast<uint32_t*>(group + quantOffset(b * 32 + word * 4)) =
                stored ? read32(stored + 2 + 4 * word) : 0;
    }
    __device__ void load(const uint8_t* row, const __half* rowScales, int group, int t) {
        first = loadStream16(row + int64_t{group} * 128 + t * 16);
        second = loadStream16(row + int64_t{group} * 128 + 64 + t * 16);
        scales = loadStream8(rowScales + group * 4);
    }
    __device__ void loadShared(const uint4* at) {
        first = at[0];
        second = at[4];
    }
    __device__ int4 dots(uint4 a, uint4 b) const {
        const auto dot = [](uint32_t low, uint32_t high, uint32_t x, uint32_t y) {
            return __dp4a(static_cast<int>(high), static_cast<int>(y),
                          __dp4a(static_cast<int>(low), static_cast<int>(x), 0));
        };
        return make_int4(dot(first.x, first.y, a.x, a.y), dot(first.z, first.w, a.z, a.w),
                         dot(second.x, second.y, b.x, b.y), dot(second.z, second.w, b.z, b.w));
    }
    static __device__ void operandA(const WeightChunk& upper, const WeightChunk& lower, int b, uint32_t (&a)[4]) {
        const uint4 u = b < 2 ? upper.first : upper.second, l = b < 2 ? lower.first : lower.second;
        a[0] = b % 2 ? u.z : u.x;
        a[1] = b % 2 ? l.z : l.x;
        a[2] = b % 2 ? u.w : u.y;
        a[3] = b % 2 ? l.w : l.y;
    }
    template <int kHalf>
    static __device__ void widen(const uint4& plane, int b, __half2 scale, uint32_t (&out)[2]) {
        const __half2 offset = __floats2half2_rn(1152.0f, 1152.0f);
        const uint32_t positive = component(plane, 2 * b + kHalf) ^ 0x80808080u;
        out[0] = asBits(__hmul2(__hsub2(asHalf2(__byte_perm(positive, 0x64646464u, 0x4240)), offset), scale));
        out[1] = asBits(__hmul2(__hsub2(asHalf2(__byte_perm(positive, 0x64646464u, 0x4341)), offset), scale));
    }
    __device__ int value(int b, int half, int byte) const {
        const uint32_t word = component(b < 2 ? first : second, b % 2 * 2 + half);
        return static_cast<int>(word << (24 - 8 * byte)) >> 24;
    }
};

/// use.operator()<type>() for a quantised type.
template <typename Use>
auto withQuantType(DType type, const Use& use) {
    switch (type) {
        case DType::Q40:
            return use.template operator()<DType::Q40>();
        case DType::Q80:
            return use.template operator()<DType::Q80>();
        default:
            failOnType(type);
    }
}

}  // namespace dllama::gpu
