#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace dllama {

/// Deeper than any document of ours; what copies, prints or destroys a document goes down level by level.
constexpr int kMaxJsonDepth = 64;

/// Parses JSON that a file or a peer wrote: all of it goes through here. A discarded value (is_discarded()) if the text
/// is not valid JSON, or nested deeper than kMaxJsonDepth, which is found out before anything is built.
nlohmann::json parseJson(std::string_view text);

}  // namespace dllama
