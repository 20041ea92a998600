#pragma once

#include <string_view>

namespace dllama::grammar {

/// The texts of one of JSON Schema's formats as a regular expression. Empty for a format that this is not known of.
std::string_view patternOfFormat(std::string_view format);

/// A format that JSON Schema defines, known here or not: a text of any other format is not restricted.
bool isStandardFormat(std::string_view format);

}  // namespace dllama::grammar
