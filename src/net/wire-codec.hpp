#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dllama {

/// How activations travel.
enum class Wire : uint8_t { F32, F16, Q80 };

const char* wireName(Wire wire);
std::optional<Wire> wireFromName(std::string_view name);

/// Bytes of n values; Q80 rounds up to whole blocks of 32.
size_t wireBytes(Wire wire, size_t n);
/// n values to wireBytes(wire, n) bytes, at any alignment.
void encodeWire(Wire wire, const float* x, size_t n, std::byte* out);
/// sum[i] += the values of `in`.
void addWire(Wire wire, const std::byte* in, size_t n, float* sum);

}  // namespace dllama
