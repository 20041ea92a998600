#include "tensor/blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/half.hpp"

namespace dllama {

namespace {

/// 1 / d, or 0 for blocks so small that it is no number: their f16 scale is 0 as well.
float inverseOf(float d) {
    const float inverse = 1.0f / d;
    return std::isfinite(inverse) ? inverse : 0.0f;
}

}  // namespace

void quantizeQ40(const float* x, BlockQ40* out, int64_t n) {
    for (int64_t block = 0; block < n / kBlockValues; block++, x += kBlockValues) {
        const auto [low, high] = std::minmax_element(x, x + kBlockValues);
        const float extreme = -*low > *high ? *low : *high;
        const float d = extreme / -8.0f;
        const float inverse = inverseOf(d);
        BlockQ40& b = out[block];
        b.d = f32ToF16(d);
        const auto nibble = [&](float value) {
            return static_cast<uint8_t>(std::clamp(std::trunc(value * inverse + 8.5f), 0.0f, 15.0f));
        };
        for (int j = 0; j < 16; j++) b.nibbles[j] = static_cast<uint8_t>(nibble(x[j]) | (nibble(x[j + 16]) << 4));
    }
}

void quantizeQ80(const float* x, BlockQ80* out, int64_t n) {
    for (int64_t block = 0; block < n / kBlockValues; block++, x += kBlockValues) {
        float largest = 0.0f;
        for (int j = 0; j < kBlockValues; j++) largest = std::max(largest, std::fabs(x[j]));
        const float d = largest / 127.0f;
        const float inverse = inverseOf(d);
        out[block].d = f32ToF16(d);
        for (int j = 0; j < kBlockValues; j++)
            out[block].values[j] = static_cast<int8_t>(std::clamp(std::nearbyint(x[j] * inverse), -127.0f, 127.0f));
    }
}

namespace {

// One quantize and one dequantize for each quantised type: n values, whole blocks, from or to bytes aligned or not.

void dequantizeQ80(const std::byte* bytes, float* out, int64_t n) {
    for (int64_t block = 0; block < n / kBlockValues; block++, out += kBlockValues) {
        BlockQ80 b;
        std::memcpy(&b, bytes + block * sizeof b, sizeof b);
        const float d = f16ToF32(b.d);
        for (int j = 0; j < kBlockValues; j++) out[j] = static_cast<float>(b.values[j]) * d;
    }
}

void dequantizeQ40(const std::byte* bytes, float* out, int64_t n) {
    for (int64_t block = 0; block < n / kBlockValues; block++, out += kBlockValues) {
        BlockQ40 b;
        std::memcpy(&b, bytes + block * sizeof b, sizeof b);
        const float d = f16ToF32(b.d);
        for (int j = 0; j < 16; j++) {
            out[j] = static_cast<float>((b.nibbles[j] & 15) - 8) * d;
            out[j + 16] = static_cast<float>((b.nibbles[j] >> 4) - 8) * d;
        }
    }
}

}  // namespace

void dequantize(DType type, const void* data, float* out, int64_t n) {
    const auto* bytes = static_cast<const std::byte*>(data);
    switch (type) {
        case DType::F32:
            std::memcpy(out, bytes, static_cast<size_t>(n) * 4);
            return;
        case DType::F16:
        case DType::BF16:
            for (int64_t i = 0; i < n; i++) {
                uint16_t bits;
                std::memcpy(&bits, bytes + 2 * i, 2);
                out[i] = type == DType::F16 ? f16ToF32(bits) : bf16ToF32(bits);
            }
            return;
        case DType::Q80:
            return dequantizeQ80(bytes, out, n);
        case DType::Q40:
            return dequantizeQ40(bytes, out, n);
    }
}

void quantize(DType type, const float* x, void* out, int64_t n) {
    auto* halves = static_cast<uint16_t*>(out);
    switch (type) {
        case DType::F32:
            std::memcpy(out, x, static_cast<size_t>(n) * 4);
            return;
        case DType::F16:
            for (int64_t i = 0; i < n; i++) halves[i] = f32ToF16(x[i]);
            return;
        case DType::BF16:
            for (int64_t i = 0; i < n; i++) halves[i] = f32ToBf16(x[i]);
            return;
        case DType::Q80:
            return quantizeQ80(x, static_cast<BlockQ80*>(out), n);
        case DType::Q40:
            return quantizeQ40(x, static_cast<BlockQ40*>(out), n);
    }
}

}  // namespace dllama
