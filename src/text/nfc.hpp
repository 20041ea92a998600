#pragma once

#include <string>
#include <string_view>

namespace dllama {

/// `text`, which must be valid UTF-8, in Unicode's normal form C. Takes n log n time on any text.
std::string toNfc(std::string_view text);

}  // namespace dllama
