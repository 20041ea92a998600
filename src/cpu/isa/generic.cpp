// Plain C++, 8 lanes: any machine. Loops over lanes, which compilers turn into what vectors the machine is sure to
// have.

#include <bit>

#include "cpu/kernels.hpp"
#include "tensor/half.hpp"

namespace dllama {
namespace {

constexpr int kLanes = 8;
constexpr int kQuantTile = 2;
constexpr int kFloatTile = 2;

struct Floats {
    float lanes[kLanes];
};
struct Ints {
    int32_t lanes[kLanes];
};

template <typename Vector, typename Lane>
inline Vector make(const Lane& lane) {
    Vector v;
    for (int i = 0; i < kLanes; i++) v.lanes[i] = lane(i);
    return v;
}
template <typename Lane>
inline Floats floats(const Lane& lane) {
    return make<Floats>(lane);
}
template <typename T>
inline T loadAs(const void* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

inline Floats set1(float x) {
    return floats([&](int) { return x; });
}
inline Floats zero() {
    return set1(0.0f);
}
inline Floats load(const float* p) {
    return loadAs<Floats>(p);
}
inline void store(float* p, const Floats& v) {
    __builtin_memcpy(p, &v, sizeof v);
}
inline Floats loadF16(const void* p) {
    return floats([&](int i) { return f16ToF32(loadAs<uint16_t>(static_cast<const std::byte*>(p) + 2 * i)); });
}
inline void storeF16(uint16_t* p, const Floats& v) {
    for (int i = 0; i < kLanes; i++) p[i] = f32ToF16(v.lanes[i]);
}
inline Floats loadBf16(const uint16_t* p) {
    return floats([&](int i) { return bf16ToF32(loadAs<uint16_t>(p + i)); });
}
inline float roundToF16(float x) {
    return f16ToF32(f32ToF16(x));
}

inline Floats add(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] + b.lanes[i]; });
}
inline Floats sub(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] - b.lanes[i]; });
}
inline Floats mul(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] * b.lanes[i]; });
}
inline Floats div(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] / b.lanes[i]; });
}
inline Floats mulAdd(const Floats& a, const Floats& b, const Floats& c) {
    return floats([&](int i) { return a.lanes[i] * b.lanes[i] + c.lanes[i]; });
}
inline Floats max(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
}
inline Floats min(const Floats& a, const Floats& b) {
    return floats([&](int i) { return a.lanes[i] < b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
}
inline Floats abs(const Floats& a) {
    return floats([&](int i) { return a.lanes[i] < 0.0f ? -a.lanes[i] : a.lanes[i]; });
}
/// To nearest even, for |a| < 2^22: the addition pushes the fraction out.
inline Floats round(const Floats& a) {
    return floats([&](int i) { return (a.lanes[i] + 12582912.0f) - 12582912.0f; });
}
inline Ints toInts(const Floats& a) {
    const Floats whole = round(a);
    return make<Ints>([&](int i) { return static_cast<int32_t>(whole.lanes[i]); });
}
inline Floats toFloats(const Ints& a) {
    return floats([&](int i) { return static_cast<float>(a.lanes[i]); });
}
inline Floats pow2(const Ints& n) {
    return floats([&](int i) { return std::bit_cast<float>((n.lanes[i] + 127) << 23); });
}

inline Ints zeroInts() {
    return make<Ints>([](int) { return 0; });
}
inline Ints add(const Ints& a, const Ints& b) {
    return make<Ints>([&](int i) { return a.lanes[i] + b.lanes[i]; });
}
inline void storeInt8(int8_t* p, const Ints& v) {
    for (int i = 0; i < kLanes; i++) p[i] = static_cast<int8_t>(v.lanes[i]);
}

inline float first(const Floats& v) {
    return v.lanes[0];
}
inline float sumLanes(const Floats& v) {
    float sum = v.lanes[0];
    for (int i = 1; i < kLanes; i++) sum += v.lanes[i];
    return sum;
}
inline int32_t sumLanes(const Ints& v) {
    int32_t sum = 0;
    for (int i = 0; i < kLanes; i++) sum += v.lanes[i];
    return sum;
}
inline float largestLane(const Floats& v) {
    float largest = v.lanes[0];
    for (int i = 1; i < kLanes; i++) largest = v.lanes[i] > largest ? v.lanes[i] : largest;
    return largest;
}
inline Floats sumEach(const Floats* v) {
    return floats([&](int i) { return sumLanes(v[i]); });
}

struct Bytes {
    int8_t bytes[4 * kLanes];
};

template <typename Byte>
inline Bytes makeBytes(const Byte& byte) {
    Bytes v;
    for (int i = 0; i < 4 * kLanes; i++) v.bytes[i] = static_cast<int8_t>(byte(i));
    return v;
}
inline Bytes loadBytes(const std::byte* p, int word) {
    return loadAs<Bytes>(p + sizeof(Bytes) * word);
}
inline Bytes lowNibbles(const Bytes& both) {
    return makeBytes([&](int i) { return both.bytes[i] & 15; });
}
inline Bytes highNibbles(const Bytes& both) {
    return makeBytes([&](int i) { return static_cast<uint8_t>(both.bytes[i]) >> 4; });
}

inline Ints dotParts(int32_t start, const Bytes (&parts)[8], const InputBlock& input) {
    return make<Ints>([&](int row) {
        int32_t sum = start;
        for (int j = 0; j < 8; j++)
            for (int i = 0; i < 4; i++) sum += parts[j].bytes[4 * row + i] * input.values[4 * j + i];
        return sum;
    });
}
template <int kOffsetBits>
inline Ints dotNibbles(const Bytes (&parts)[8], const InputBlock& input) {
    return dotParts(-(input.sum * (1 << kOffsetBits)), parts, input);
}
inline Bytes signedBytes(const Bytes& bytes) {
    return bytes;
}
inline Ints dotBytes(const Bytes (&parts)[8], const InputBlock& input) {
    return dotParts(0, parts, input);
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/kernels-inl.hpp"

namespace dllama {

const CpuKernels kGenericKernels = kTable;

}  // namespace dllama
