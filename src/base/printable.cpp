#include "base/printable.hpp"

#include <cstdint>

namespace dllama {

namespace {

/// The next code point and how many bytes it takes; of what is not UTF-8 one byte, as U+0000.
struct CodePoint {
    uint32_t value = 0;
    size_t bytes = 1;
};

CodePoint firstOf(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {lead, 1};
    const size_t n = lead >= 0xf0 && lead <= 0xf4 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
    if (n == 0 || lead > 0xf4 || text.size() < n) return {};
    uint32_t value = lead & (0xff >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((byte(i) & 0xc0) != 0x80) return {};
        value = value << 6 | (byte(i) & 0x3f);
    }
    constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kLeast[n] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return {};
    return {value, n};
}

bool isControl(uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c <= 0x9f) ||                                       // C0, DEL, C1
           c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x2028 && c <= 0x202e) ||  // lines and directions
           (c >= 0x2066 && c <= 0x2069);
}

std::string clean(std::string_view text, size_t limit, bool keepLines) {
    std::string out;
    while (!text.empty()) {
        const CodePoint c = firstOf(text);
        if (out.size() + c.bytes > limit) break;
        if (isControl(c.value) && !(keepLines && c.value == '\n'))
            out += '?';
        else
            out += text.substr(0, c.bytes);
        text.remove_prefix(c.bytes);
    }
    return out;
}

}  // namespace

std::string printable(std::string_view text, size_t limit) {
    return clean(text, limit, false);
}

std::string printableLines(std::string_view text) {
    return clean(text, SIZE_MAX, true);
}

}  // namespace dllama
