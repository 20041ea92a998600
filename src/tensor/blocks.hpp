#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.hpp"

/// The quantised block formats and their scalar reference. The layout of both is fixed by the file format.
namespace dllama {

/// 32 values at 4.5 bits: value j is ((byte j & 15) - 8) * d for j < 16, ((byte j-16 >> 4) - 8) * d otherwise.
struct BlockQ40 {
    uint16_t d;  // f16
    uint8_t nibbles[16];
};
static_assert(sizeof(BlockQ40) == 18);

/// 32 values at 8.5 bits: value j is values[j] * d.
struct BlockQ80 {
    uint16_t d;  // f16
    int8_t values[32];
};
static_assert(sizeof(BlockQ80) == 34);

/// n values (a multiple of 32) to blocks, as docs/file-format.md defines the rounding.
void quantizeQ40(const float* x, BlockQ40* out, int64_t n);
void quantizeQ80(const float* x, BlockQ80* out, int64_t n);

/// n consecutive values of any type, from `data` (aligned or not), to float. n is a multiple of blockValues(type).
void dequantize(DType type, const void* data, float* out, int64_t n);
/// The inverse; float types round to nearest even.
void quantize(DType type, const float* x, void* out, int64_t n);

}  // namespace dllama
