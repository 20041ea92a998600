#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dllama {

/// How the values of a tensor are stored. Layouts: docs/file-format.md.
enum class DType : uint8_t { F32, F16, BF16, Q80, Q40 };

/// Values in one quantised block; rows of Q80 and Q40 tensors are whole blocks.
constexpr int kBlockValues = 32;

constexpr bool isQuantized(DType type) {
    return type == DType::Q80 || type == DType::Q40;
}
/// Values that are stored together: 32, or 1.
constexpr int blockValues(DType type) {
    return isQuantized(type) ? kBlockValues : 1;
}
/// Bytes of one block (of one value for the float types).
constexpr size_t blockBytes(DType type) {
    switch (type) {
        case DType::F32:
            return 4;
        case DType::F16:
            return 2;
        case DType::BF16:
            return 2;
        case DType::Q80:
            return 34;
        case DType::Q40:
            return 18;
    }
    return 0;
}
/// Bytes of `n` consecutive values; n is a multiple of blockValues(type).
constexpr size_t storedBytes(DType type, int64_t n) {
    return static_cast<size_t>(n / blockValues(type)) * blockBytes(type);
}
constexpr const char* dtypeName(DType type) {
    constexpr const char* names[] = {"F32", "F16", "BF16", "Q80", "Q40"};
    return names[static_cast<int>(type)];
}
constexpr std::optional<DType> dtypeFromName(std::string_view name) {
    for (DType type : {DType::F32, DType::F16, DType::BF16, DType::Q80, DType::Q40})
        if (name == dtypeName(type)) return type;
    return std::nullopt;
}

}  // namespace dllama
