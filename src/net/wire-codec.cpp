#include "net/wire-codec.hpp"

#include <bit>
#include <cstring>

#include "base/errors.hpp"
#include "tensor/blocks.hpp"
#include "tensor/half.hpp"

namespace dllama {

namespace {

constexpr size_t kBlock = 32;
constexpr size_t kBlockBytes = sizeof(BlockQ80);

// The loops run over fixed counts without branches, so that the compiler makes vector code of them.

void encodeBlock(const float* x, BlockQ80& block) {
    float lanes[8] = {};
    for (size_t i = 0; i < kBlock; i += 8)
        for (size_t j = 0; j < 8; j++) {
            const float magnitude = x[i + j] < 0.0f ? -x[i + j] : x[i + j];
            lanes[j] = lanes[j] < magnitude ? magnitude : lanes[j];
        }
    float largest = 0.0f;
    for (float lane : lanes) largest = largest < lane ? lane : largest;
    const float d = largest / 127.0f;
    const float inverse = d > 0.0f ? 127.0f / largest : 0.0f;
    block.d = f32ToF16(d);
    // Adding 1.5 * 2^23 leaves the value, rounded to the nearest even integer, in the low bits.
    constexpr float kRound = 12582912.0f;
    int32_t rounded[kBlock];
    for (size_t j = 0; j < kBlock; j++)
        rounded[j] = std::bit_cast<int32_t>(x[j] * inverse + kRound) - std::bit_cast<int32_t>(kRound);
    for (size_t j = 0; j < kBlock; j++) block.values[j] = static_cast<int8_t>(rounded[j]);
}

void addBlock(const BlockQ80& block, float* sum, size_t n) {
    const float d = f16ToF32(block.d);
    if (n == kBlock)
        for (size_t j = 0; j < kBlock; j++) sum[j] += d * static_cast<float>(block.values[j]);
    else
        for (size_t j = 0; j < n; j++) sum[j] += d * static_cast<float>(block.values[j]);
}

}  // namespace

const char* wireName(Wire wire) {
    constexpr const char* names[] = {"f32", "f16", "q80"};
    return names[static_cast<int>(wire)];
}

std::optional<Wire> wireFromName(std::string_view name) {
    for (Wire wire : {Wire::F32, Wire::F16, Wire::Q80})
        if (name == wireName(wire)) return wire;
    return std::nullopt;
}

size_t wireBytes(Wire wire, size_t n) {
    switch (wire) {
        case Wire::F32:
            return n * sizeof(float);
        case Wire::F16:
            return n * sizeof(uint16_t);
        case Wire::Q80:
            return (n + kBlock - 1) / kBlock * kBlockBytes;
    }
    return 0;
}

void encodeWire(Wire wire, const float* x, size_t n, std::byte* out) {
    if (wire == Wire::F32) {
        std::memcpy(out, x, n * sizeof(float));
    } else if (wire == Wire::F16) {
        for (size_t i = 0; i < n; i++) {
            const uint16_t half = f32ToF16(x[i]);
            std::memcpy(out + i * sizeof half, &half, sizeof half);
        }
    } else {
        BlockQ80 block;
        for (size_t i = 0; i < n; i += kBlock, out += kBlockBytes) {
            if (n - i >= kBlock) {
                encodeBlock(x + i, block);
            } else {
                float padded[kBlock] = {};
                std::memcpy(padded, x + i, (n - i) * sizeof(float));
                encodeBlock(padded, block);
            }
            std::memcpy(out, &block, kBlockBytes);
        }
    }
}

void addWire(Wire wire, const std::byte* in, size_t n, float* sum) {
    if (wire == Wire::F32) {
        for (size_t i = 0; i < n; i++) {
            float value;
            std::memcpy(&value, in + i * sizeof value, sizeof value);
            sum[i] += value;
        }
    } else if (wire == Wire::F16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            std::memcpy(&half, in + i * sizeof half, sizeof half);
            sum[i] += f16ToF32(half);
        }
    } else {
        BlockQ80 block;
        for (size_t i = 0; i < n; i += kBlock, in += kBlockBytes) {
            std::memcpy(&block, in, kBlockBytes);
            addBlock(block, sum + i, n - i < kBlock ? n - i : kBlock);
        }
    }
}

}  // namespace dllama
