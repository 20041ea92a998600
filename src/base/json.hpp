#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

namespace dllama {

/// Deeper than any document of ours; what copies, prints or destroys a document goes down level by level.
constexpr int kMaxJsonDepth = 64;

struct JsonLimits {
    int depth = kMaxJsonDepth;
    size_t values = std::numeric_limits<size_t>::max();  ///< objects, lists, texts, numbers and words together
};

/// What is wrong with a text, as a condition: true if anything is.
struct JsonFault {
    enum class Kind { None, NoJson, TooDeep, TooManyValues };

    Kind kind = Kind::None;
    size_t at = 0;  ///< the byte (NoJson), counted from 1; the text's size where it ends too early

    explicit operator bool() const { return kind != Kind::None; }
};

/// Reads the text once and builds nothing, so that what it costs does not depend on what it holds.
JsonFault checkJson(std::string_view text, JsonLimits limits);

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
