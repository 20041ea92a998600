#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "format/tensor-source.hpp"

/// Constants of the .m layout that reader and writer share (docs/file-format.md).
namespace dllama {

constexpr uint32_t kModelMagic = 0x0A00ABCD;
constexpr int32_t kMaxHeaderBytes = 8 + 8 * 256;
constexpr int32_t kArchDescribed = 0xABCD10;
constexpr int32_t kDescribedVersion = 1;

namespace described {

constexpr size_t kAlignment = 64;
constexpr size_t kHeaderBytes = 8 + 8 * 5;
constexpr size_t aligned(size_t offset) {
    return (offset + kAlignment - 1) / kAlignment * kAlignment;
}
constexpr size_t dataBegin(size_t jsonBytes) {
    return aligned(kHeaderBytes + jsonBytes);
}

}  // namespace described

/// The bytes of `slice` within the whole tensor's bytes: a view of its rows, or gathered columns in `scratch`.
inline std::span<const std::byte> sliceBytes(const TensorInfo& tensor, std::span<const std::byte> bytes,
                                             const TensorSlice& slice, std::vector<std::byte>& scratch) {
    const size_t stride = storedBytes(tensor.dtype, tensor.cols);
    if (slice.colBegin == 0 && slice.colEnd == tensor.cols)
        return bytes.subspan(slice.rowBegin * stride, slice.rows() * stride);
    const size_t begin = storedBytes(tensor.dtype, slice.colBegin);
    const size_t width = storedBytes(tensor.dtype, slice.cols());
    scratch.resize(width * slice.rows());
    for (int64_t r = 0; r < slice.rows(); r++)
        std::memcpy(scratch.data() + r * width, bytes.data() + (slice.rowBegin + r) * stride + begin, width);
    return scratch;
}

}  // namespace dllama
