#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/checked.hpp"
#include "tensor/dtype.hpp"

namespace dllama {

/// A tensor as it is stored. A vector has one row.
struct TensorInfo {
    std::string name;
    DType dtype = DType::F32;
    int64_t rows = 1;
    int64_t cols = 0;
    /// Throws FormatError if that is more than can be counted.
    size_t bytes() const { return checkedProduct(static_cast<size_t>(rows), storedBytes(dtype, cols), name); }
};

/// Rows [rowBegin, rowEnd) and columns [colBegin, colEnd) of the tensor `name`. Columns are multiples of the dtype's
/// block length.
struct TensorSlice {
    std::string name;
    int64_t rowBegin = 0, rowEnd = 0;
    int64_t colBegin = 0, colEnd = 0;
    int64_t rows() const { return rowEnd - rowBegin; }
    int64_t cols() const { return colEnd - colBegin; }
};

/// Where the bytes of weights come from: a mapped .m file, or slices received from the root. Thread-safe.
class TensorSource {
  public:
    virtual ~TensorSource() = default;

    /// Throws FormatError, naming the source and the tensor, if there is none of that name.
    virtual const TensorInfo& info(std::string_view name) const = 0;
    virtual bool has(std::string_view name) const = 0;

    /// The slice's bytes, row-major. Either a view of memory that lives as long as the source, or gathered into
    /// `scratch`. Throws FormatError if the tensor is damaged.
    virtual std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>& scratch) const = 0;

    /// True if read() of this slice returns a view that lives as long as the source, so that a backend may compute
    /// from it in place.
    virtual bool isMapped(const TensorSlice& slice) const = 0;

    /// The caller has its own copy of this slice; its pages may go.
    virtual void release(const TensorSlice& slice) const = 0;

    TensorSlice whole(std::string_view name) const {
        const TensorInfo& tensor = info(name);
        return {std::string(name), 0, tensor.rows, 0, tensor.cols};
    }
};

}  // namespace dllama
