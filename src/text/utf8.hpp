#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace dllama {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
    size_t length = 0;       ///< bytes taken, at least 1
    uint32_t codePoint = 0;  ///< U+FFFD if not valid
    bool valid = false;
    bool cutOff = false;  ///< not valid only because the text ends here; more bytes could complete it
};

/// The first character of `text`, which must not be empty. Of a faulty sequence it takes the longest part that could
/// have begun a character (Unicode 15.0, section 3.9, "maximal subpart"), as Python's decoder does.
Utf8Step utf8Step(std::string_view text);

bool isValidUtf8(std::string_view text);

/// `text` with each faulty sequence replaced by U+FFFD, as Python's errors="replace" does.
std::string replaceInvalidUtf8(std::string_view text);

/// `text` without white space at both ends. White space is what Python's str.strip() removes: also U+00A0, U+3000, ...
std::string_view stripUnicode(std::string_view text);
std::string_view stripUnicodeLeft(std::string_view text);

}  // namespace dllama
