#pragma once

#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace dllama {

/// Deeper than any document of ours; what copies, prints or destroys a document goes down level by level.
constexpr int kMaxJsonDepth = 64;

/// Parses JSON that a file or a peer wrote: all of it goes through here. A discarded value (is_discarded()) if the text
/// is not valid JSON, or nested deeper than kMaxJsonDepth, which is found out before anything is built.
nlohmann::json parseJson(std::string_view text);

/// A whole number that fits into T. Throws nlohmann::json::exception for anything else: get<T>() takes 1e308 for an
/// integer as well, and cuts off what does not fit.
template <std::integral T>
T integerFrom(const nlohmann::json& value) {
    const bool fits = value.is_number_unsigned()  ? std::in_range<T>(value.get<uint64_t>())
                      : value.is_number_integer() ? std::in_range<T>(value.get<int64_t>())
                                                  : false;
    if (!fits) throw nlohmann::json::out_of_range::create(406, "not a whole number, or out of range", &value);
    return value.get<T>();
}

}  // namespace dllama
