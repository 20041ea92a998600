// NEON with dot products (ARMv8.2): 4 lanes.

#include <arm_neon.h>

#include "cpu/kernels.hpp"

namespace dllama {
namespace {

constexpr int kLanes = 4;
constexpr int kQuantTile = 8;
constexpr int kFloatTile = 4;

using Floats = float32x4_t;
using Ints = int32x4_t;

inline Floats zero() {
    return vdupq_n_f32(0.0f);
}
inline Floats set1(float x) {
    return vdupq_n_f32(x);
}
inline Floats load(const float* p) {
    return vld1q_f32(p);
}
inline void store(float* p, Floats v) {
    vst1q_f32(p, v);
}
inline Floats loadF16(const void* p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(p))));
}
inline void storeF16(uint16_t* p, Floats v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
inline Floats loadBf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
inline float roundToF16(float x) {
    return vgetq_lane_f32(vcvt_f32_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}

inline Floats add(Floats a, Floats b) {
    return vaddq_f32(a, b);
}
inline Floats sub(Floats a, Floats b) {
    return vsubq_f32(a, b);
}
inline Floats mul(Floats a, Floats b) {
    return vmulq_f32(a, b);
}
inline Floats div(Floats a, Floats b) {
    return vdivq_f32(a, b);
}
inline Floats mulAdd(Floats a, Floats b, Floats c) {
    return vfmaq_f32(c, a, b);
}
inline Floats max(Floats a, Floats b) {
    return vmaxq_f32(a, b);
}
inline Floats min(Floats a, Floats b) {
    return vminq_f32(a, b);
}
inline Floats abs(Floats a) {
    return vabsq_f32(a);
}
inline Floats round(Floats a) {
    return vrndnq_f32(a);
}
inline Ints toInts(Floats a) {
    return vcvtnq_s32_f32(a);
}
inline Floats toFloats(Ints a) {
    return vcvtq_f32_s32(a);
}
inline Floats pow2(Ints n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

inline Ints zeroInts() {
    return vdupq_n_s32(0);
}
inline Ints add(Ints a, Ints b) {
    return vaddq_s32(a, b);
}
inline void storeInt8(int8_t* p, Ints v) {
    const int16x4_t words = vqmovn_s32(v);
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    __builtin_memcpy(p, &four, 4);
}

inline float first(Floats v) {
    return vgetq_lane_f32(v, 0);
}
inline float sumLanes(Floats v) {
    return vaddvq_f32(v);
}
inline int32_t sumLanes(Ints v) {
    return vaddvq_s32(v);
}
inline float largestLane(Floats v) {
    return vmaxvq_f32(v);
}
inline Floats sumEach(const Floats* v) {
    return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}

using Bytes = int8x16_t;

inline Bytes loadBytes(const std::byte* p, int word) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(p) + 16 * word);
}
inline Bytes lowNibbles(Bytes both) {
    return vandq_s8(both, vdupq_n_s8(15));
}
inline Bytes highNibbles(Bytes both) {
    return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4));
}

/// Adds the products of the 32 columns of 4 rows to `sum`.
inline Ints dotParts(Ints sum, const Bytes (&parts)[8], const InputBlock& input) {
    const int8x16_t low = vld1q_s8(input.values);
    const int8x16_t high = vld1q_s8(input.values + 16);
    Ints other = zeroInts();
    sum = vdotq_laneq_s32(sum, parts[0], low, 0);
    other = vdotq_laneq_s32(other, parts[4], high, 0);
    sum = vdotq_laneq_s32(sum, parts[1], low, 1);
    other = vdotq_laneq_s32(other, parts[5], high, 1);
    sum = vdotq_laneq_s32(sum, parts[2], low, 2);
    other = vdotq_laneq_s32(other, parts[6], high, 2);
    sum = vdotq_laneq_s32(sum, parts[3], low, 3);
    other = vdotq_laneq_s32(other, parts[7], high, 3);
    return vaddq_s32(sum, other);
}

template <int kOffsetBits>
inline Ints dotNibbles(const Bytes (&parts)[8], const InputBlock& input) {
    return dotParts(vdupq_n_s32(-(input.sum << kOffsetBits)), parts, input);
}
inline Bytes signedBytes(Bytes bytes) {
    return bytes;
}
inline Ints dotBytes(const Bytes (&parts)[8], const InputBlock& input) {
    return dotParts(zeroInts(), parts, input);
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/kernels-inl.hpp"

namespace dllama {

const CpuKernels kNeonKernels = kTable;

}  // namespace dllama
