#include "text/utf8.hpp"

namespace dllama {
namespace {

constexpr uint32_t kReplacement = 0xFFFD;

Utf8Step faulty(size_t length, bool cutOff) {
    return {length, kReplacement, false, cutOff};
}

/// Python's str.isspace() for the characters that str.strip() removes.
bool isSpace(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

Utf8Step utf8Step(std::string_view text) {
    const auto byteAt = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t first = byteAt(0);
    if (first < 0x80) return {1, first, true, false};
    // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF (Unicode table 3-7).
    size_t length;
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (first >= 0xC2 && first <= 0xDF) {
        length = 2;
    } else if (first >= 0xE0 && first <= 0xEF) {
        length = 3;
        if (first == 0xE0) low = 0xA0;
        if (first == 0xED) high = 0x9F;
    } else if (first >= 0xF0 && first <= 0xF4) {
        length = 4;
        if (first == 0xF0) low = 0x90;
        if (first == 0xF4) high = 0x8F;
    } else {
        return faulty(1, false);
    }
    uint32_t codePoint = first & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (i == text.size()) return faulty(i, true);
        const uint8_t next = byteAt(i);
        if (next < low || next > high) return faulty(i, false);
        low = 0x80;
        high = 0xBF;
        codePoint = codePoint << 6 | (next & 0x3Fu);
    }
    return {length, codePoint, true, false};
}

bool isValidUtf8(std::string_view text) {
    while (!text.empty()) {
        const Utf8Step step = utf8Step(text);
        if (!step.valid) return false;
        text.remove_prefix(step.length);
    }
    return true;
}

std::string replaceInvalidUtf8(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    while (!text.empty()) {
        const Utf8Step step = utf8Step(text);
        result += step.valid ? text.substr(0, step.length) : kReplacementCharacter;
        text.remove_prefix(step.length);
    }
    return result;
}

std::string_view stripUnicodeLeft(std::string_view text) {
    while (!text.empty()) {
        const Utf8Step step = utf8Step(text);
        if (!step.valid || !isSpace(step.codePoint)) break;
        text.remove_prefix(step.length);
    }
    return text;
}

std::string_view stripUnicode(std::string_view text) {
    text = stripUnicodeLeft(text);
    while (!text.empty()) {
        size_t start = text.size() - 1;
        while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) start--;
        const Utf8Step step = utf8Step(text.substr(start));
        if (!step.valid || start + step.length != text.size() || !isSpace(step.codePoint)) break;
        text = text.substr(0, start);
    }
    return text;
}

}  // namespace dllama
