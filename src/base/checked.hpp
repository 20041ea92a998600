#pragma once

#include <cstddef>
#include <string_view>

#include "base/errors.hpp"

namespace dllama {

/// a * b, for sizes that a file or a peer states. Throws FormatError, naming `what`, if memory could not hold that
/// much.
inline size_t checkedProduct(size_t a, size_t b, std::string_view what) {
    size_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || product > PTRDIFF_MAX)
        throw FormatError("{}: {} x {} bytes are more than any memory holds", what, a, b);
    return product;
}

}  // namespace dllama
