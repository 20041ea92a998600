#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>
#include <type_traits>

namespace dllama {

/// How the values of a tensor are stored. Layouts: docs/file-format.md; to add one: docs/adding-a-weight-format.md.
enum class DType : uint8_t { F32, F16, BF16, Q80, Q40 };

struct DTypeInfo {
    DType type;
    const char* name;  // in files and messages
    int blockValues;   // values that are stored together; rows of a tensor are whole blocks
    int blockBytes;
    /// What stands before the values of a block: scales, offsets. The rest is a whole number of 4-byte words.
    int headBytes;
};

/// All types, in the order of DType. Those with blocks are the quantised ones.
inline constexpr DTypeInfo kDTypes[] = {
    {DType::F32, "F32", 1, 4, 0},    //
    {DType::F16, "F16", 1, 2, 0},    //
    {DType::BF16, "BF16", 1, 2, 0},  //
    {DType::Q80, "Q80", 32, 34, 2},  //
    {DType::Q40, "Q40", 32, 18, 2},
};
inline constexpr int kNDTypes = static_cast<int>(std::size(kDTypes));

/// Activations meet quantised weights in Q80 blocks of this many values: each quantised type's block is a multiple.
constexpr int kBlockValues = 32;

constexpr const DTypeInfo& dtypeInfo(DType type) {
    return kDTypes[static_cast<int>(type)];
}
constexpr int blockValues(DType type) {
    return dtypeInfo(type).blockValues;
}
constexpr bool isQuantized(DType type) {
    return blockValues(type) > 1;
}
/// Bytes of one block (of one value for the float types).
constexpr size_t blockBytes(DType type) {
    return static_cast<size_t>(dtypeInfo(type).blockBytes);
}
/// Bytes of `n` consecutive values; n is a multiple of blockValues(type).
constexpr size_t storedBytes(DType type, int64_t n) {
    return static_cast<size_t>(n / blockValues(type)) * blockBytes(type);
}
constexpr const char* dtypeName(DType type) {
    return dtypeInfo(type).name;
}
constexpr std::optional<DType> dtypeFromName(std::string_view name) {
    for (const DTypeInfo& info : kDTypes)
        if (name == info.name) return info.type;
    return std::nullopt;
}

/// Calls body(std::integral_constant<DType, type>{}) if `type` is quantised, so that it can choose code by the type.
/// False, without a call, for float types.
template <int kFirst = 0, class Body>
constexpr bool withQuantized(DType type, const Body& body) {
    if constexpr (kFirst < kNDTypes) {
        constexpr DTypeInfo info = kDTypes[kFirst];
        if constexpr (info.blockValues > 1) {
            if (type == info.type) {
                body(std::integral_constant<DType, info.type>{});
                return true;
            }
        }
        return withQuantized<kFirst + 1>(type, body);
    } else {
        return false;
    }
}

constexpr bool dtypeTableIsSound() {
    for (int i = 0; i < kNDTypes; i++) {
        const DTypeInfo& info = kDTypes[i];
        if (static_cast<int>(info.type) != i) return false;
        if (info.blockValues > 1 &&
            (info.blockValues % kBlockValues != 0 || (info.blockBytes - info.headBytes) % 4 != 0))
            return false;
    }
    return true;
}
static_assert(dtypeTableIsSound());

}  // namespace dllama
