// AVX2 with FMA and F16C: 8 lanes.

#include <immintrin.h>

#include "cpu/kernels.hpp"

namespace dllama {
namespace {

constexpr int kLanes = 8;
constexpr int kQuantTile = 4;
constexpr int kFloatTile = 2;

using Floats = __m256;
using Ints = __m256i;

inline Floats zero() {
    return _mm256_setzero_ps();
}
inline Floats set1(float x) {
    return _mm256_set1_ps(x);
}
inline Floats load(const float* p) {
    return _mm256_loadu_ps(p);
}
inline void store(float* p, Floats v) {
    _mm256_storeu_ps(p, v);
}
inline __m128i load16(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
inline Floats loadF16(const void* p) {
    return _mm256_cvtph_ps(load16(p));
}
inline void storeF16(uint16_t* p, Floats v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats loadBf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
}
inline float roundToF16(float x) {
    return _cvtsh_ss(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats add(Floats a, Floats b) {
    return _mm256_add_ps(a, b);
}
inline Floats sub(Floats a, Floats b) {
    return _mm256_sub_ps(a, b);
}
inline Floats mul(Floats a, Floats b) {
    return _mm256_mul_ps(a, b);
}
inline Floats div(Floats a, Floats b) {
    return _mm256_div_ps(a, b);
}
inline Floats mulAdd(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline Floats max(Floats a, Floats b) {
    return _mm256_max_ps(a, b);
}
inline Floats min(Floats a, Floats b) {
    return _mm256_min_ps(a, b);
}
inline Floats abs(Floats a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
inline Floats round(Floats a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Ints toInts(Floats a) {
    return _mm256_cvtps_epi32(a);
}
inline Floats toFloats(Ints a) {
    return _mm256_cvtepi32_ps(a);
}
inline Floats pow2(Ints n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

inline Ints zeroInts() {
    return _mm256_setzero_si256();
}
inline Ints add(Ints a, Ints b) {
    return _mm256_add_epi32(a, b);
}
inline void storeInt8(int8_t* p, Ints v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

inline float first(Floats v) {
    return _mm256_cvtss_f32(v);
}
inline float sumLanes(Floats v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline int32_t sumLanes(Ints v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline float largestLane(Floats v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline Floats sumEach(const Floats* v) {
    const Floats a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Floats b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

/// Four consecutive activations in every lane.
inline Ints inputPart(const InputBlock& input, int part) {
    int32_t four;
    __builtin_memcpy(&four, input.values + 4 * part, 4);
    return _mm256_set1_epi32(four);
}

using Bytes = __m256i;

inline Bytes loadBytes(const std::byte* p, int word) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + word);
}
inline Bytes lowNibbles(Bytes both) {
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
inline Bytes highNibbles(Bytes both) {
    return _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
}

template <int kOffsetBits>
inline Ints dotNibbles(const Bytes (&parts)[8], const InputBlock& input) {
    // At most 16 products of 15 * 127 meet in an int16: 30480.
    Ints even = _mm256_maddubs_epi16(parts[0], inputPart(input, 0));
    Ints odd = _mm256_maddubs_epi16(parts[1], inputPart(input, 1));
    for (int j = 2; j < 8; j += 2) {
        even = _mm256_add_epi16(even, _mm256_maddubs_epi16(parts[j], inputPart(input, j)));
        odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(parts[j + 1], inputPart(input, j + 1)));
    }
    const Ints sum = _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
    return _mm256_sub_epi32(sum, _mm256_slli_epi32(_mm256_set1_epi32(input.sum), kOffsetBits));
}

inline Bytes signedBytes(Bytes bytes) {
    return bytes;
}
inline Ints dotBytes(const Bytes (&parts)[8], const InputBlock& input) {
    // w x = |w| (sign of w) x, for maddubs takes one operand without sign. Activations are never -128.
    Ints sum = zeroInts();
    for (int j = 0; j < 8; j++) {
        const Ints pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(parts[j]), _mm256_sign_epi8(inputPart(input, j), parts[j]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return sum;
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/kernels-inl.hpp"

namespace dllama {

const CpuKernels kAvx2Kernels = kTable;

}  // namespace dllama
