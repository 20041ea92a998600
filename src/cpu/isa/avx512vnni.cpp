// AVX-512 with VNNI: 16 lanes.

#include <immintrin.h>

#include "cpu/kernels.hpp"

namespace dllama {
namespace {

constexpr int kLanes = 16;
constexpr int kQuantTile = 8;
constexpr int kFloatTile = 4;

using Floats = __m512;
using Ints = __m512i;

inline Floats zero() {
    return _mm512_setzero_ps();
}
inline Floats set1(float x) {
    return _mm512_set1_ps(x);
}
inline Floats load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, Floats v) {
    _mm512_storeu_ps(p, v);
}
inline __m256i load16(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Floats loadF16(const void* p) {
    return _mm512_cvtph_ps(load16(p));
}
inline void storeF16(uint16_t* p, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats loadBf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p)), 16));
}
inline float roundToF16(float x) {
    return _cvtsh_ss(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats add(Floats a, Floats b) {
    return _mm512_add_ps(a, b);
}
inline Floats sub(Floats a, Floats b) {
    return _mm512_sub_ps(a, b);
}
inline Floats mul(Floats a, Floats b) {
    return _mm512_mul_ps(a, b);
}
inline Floats div(Floats a, Floats b) {
    return _mm512_div_ps(a, b);
}
inline Floats mulAdd(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline Floats max(Floats a, Floats b) {
    return _mm512_max_ps(a, b);
}
inline Floats min(Floats a, Floats b) {
    return _mm512_min_ps(a, b);
}
inline Floats abs(Floats a) {
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a);
}
inline Floats round(Floats a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Ints toInts(Floats a) {
    return _mm512_cvtps_epi32(a);
}
inline Floats toFloats(Ints a) {
    return _mm512_cvtepi32_ps(a);
}
inline Floats pow2(Ints n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

inline Ints zeroInts() {
    return _mm512_setzero_si512();
}
inline Ints add(Ints a, Ints b) {
    return _mm512_add_epi32(a, b);
}
inline void storeInt8(int8_t* p, Ints v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}

inline __m256 lowHalf(Floats v) {
    return _mm512_castps512_ps256(v);
}
inline __m256 highHalf(Floats v) {
    return _mm512_extractf32x8_ps(v, 1);
}

inline float first(Floats v) {
    return _mm512_cvtss_f32(v);
}
inline float sumLanes(Floats v) {
    const __m256 s8 = _mm256_add_ps(lowHalf(v), highHalf(v));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline int32_t sumLanes(Ints v) {
    return _mm512_reduce_add_epi32(v);
}
inline float largestLane(Floats v) {
    return _mm512_reduce_max_ps(v);
}

inline __m256 sumEach8(const Floats* v) {
    __m256 half[8];
    for (int i = 0; i < 8; i++) half[i] = _mm256_add_ps(lowHalf(v[i]), highHalf(v[i]));
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(half[4], half[5]), _mm256_hadd_ps(half[6], half[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
inline Floats sumEach(const Floats* v) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(sumEach8(v)), sumEach8(v + 8), 1);
}

/// Four consecutive activations in every lane.
inline Ints inputPart(const InputBlock& input, int part) {
    int32_t four;
    __builtin_memcpy(&four, input.values + 4 * part, 4);
    return _mm512_set1_epi32(four);
}

using Bytes = __m512i;

inline Bytes loadBytes(const std::byte* p, int word) {
    return _mm512_loadu_si512(p + 64 * word);
}
inline Bytes lowNibbles(Bytes both) {
    return _mm512_and_si512(both, _mm512_set1_epi8(15));
}
inline Bytes highNibbles(Bytes both) {
    return _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
}

/// The sum of the products of unsigned weights, less what their offset of 2^kOffsetBits adds to it. Two chains, for
/// dpbusd takes four to five cycles.
template <int kOffsetBits>
inline Ints dotNibbles(const Bytes (&parts)[8], const InputBlock& input) {
    Ints even = _mm512_set1_epi32(-(input.sum << kOffsetBits));
    Ints odd = zeroInts();
    for (int j = 0; j < 8; j += 2) {
        even = _mm512_dpbusd_epi32(even, parts[j], inputPart(input, j));
        odd = _mm512_dpbusd_epi32(odd, parts[j + 1], inputPart(input, j + 1));
    }
    return _mm512_add_epi32(even, odd);
}

/// dpbusd takes one operand without sign: w + 128, with an offset of 128.
inline Bytes signedBytes(Bytes bytes) {
    return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
}
inline Ints dotBytes(const Bytes (&parts)[8], const InputBlock& input) {
    return dotNibbles<7>(parts, input);
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/kernels-inl.hpp"

namespace dllama {

const CpuKernels kAvx512VnniKernels = kTable;

}  // namespace dllama
