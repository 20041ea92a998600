#include "text/nfc.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama {

std::string toNfc(std::string_view text) {
    const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<signed char>(c) >= 0; });
    if (ascii) return std::string(text);

    // utf8proc orders combining marks by exchanging neighbours, which is quadratic on a long run of them; so it is
    // asked for single characters here, and the marks are sorted by run.
    constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    std::vector<utf8proc_int32_t> codes;
    codes.reserve(text.size() + 1);
    for (std::string_view rest = text; !rest.empty();) {
        const Utf8Step step = utf8Step(rest);
        rest.remove_prefix(step.length);
        utf8proc_int32_t parts[32];
        int boundary = 0;
        const utf8proc_ssize_t n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.codePoint), parts,
                                                           std::ssize(parts), kOptions, &boundary);
        DLLAMA_CHECK(n >= 0 && n <= std::ssize(parts));
        codes.insert(codes.end(), parts, parts + n);
    }
    const auto combiningClass = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
    for (size_t begin = 0; begin < codes.size();) {
        size_t end = begin;
        while (end < codes.size() && combiningClass(codes[end]) != 0) end++;
        std::stable_sort(codes.begin() + static_cast<ptrdiff_t>(begin), codes.begin() + static_cast<ptrdiff_t>(end),
                         [&](auto a, auto b) { return combiningClass(a) < combiningClass(b); });
        begin = end + 1;
    }
    const utf8proc_ssize_t n = utf8proc_normalize_utf32(codes.data(), std::ssize(codes), kOptions);
    DLLAMA_CHECK(n >= 0);
    std::string result;
    result.reserve(text.size());
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        utf8proc_uint8_t bytes[4];
        const utf8proc_ssize_t length = utf8proc_encode_char(codes[static_cast<size_t>(i)], bytes);
        result.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
    }
    return result;
}

}  // namespace dllama
