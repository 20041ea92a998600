#include "grammar/char-set.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "base/errors.hpp"

namespace dllama::grammar {
namespace {

constexpr uint32_t kLast = 0x10FFFF;
constexpr CharSet::Range kSurrogates = {0xD800, 0xDFFF};

/// The control characters, the quote and the backslash: what a JSON string writes with a backslash.
const CharSet& escaped() {
    static const CharSet set = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
    return set;
}

std::array<uint8_t, 4> utf8(uint32_t c, int length) {
    std::array<uint8_t, 4> bytes{};
    for (int i = length - 1; i > 0; i--, c >>= 6)
        bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(0x80 | (c & 0x3F));
    constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
    bytes[0] = static_cast<uint8_t>(kLead[length - 1] | c);
    return bytes;
}

/// Writes ranges of characters as ranges of bytes. Ends of the same kind are shared.
class Utf8Writer {
  public:
    Utf8Writer(Grammar& grammar, int to) : grammar_(grammar), to_(to) {}

    void add(int from, CharSet::Range range) {
        constexpr uint32_t kLengthEnds[] = {0x7F, 0x7FF, 0xFFFF, kLast};
        for (int length = 1; length <= 4; length++) {
            const uint32_t least = length == 1 ? 0 : kLengthEnds[length - 2] + 1;
            const uint32_t first = std::max(range.first, least), last = std::min(range.last, kLengthEnds[length - 1]);
            if (first <= last) sequence(from, first, last, length);
        }
    }

  private:
    /// Characters of one length: split until every byte but the first of its kind runs over its whole range.
    void sequence(int from, uint32_t first, uint32_t last, int length) {
        for (int i = 1; i < length; i++) {
            const uint32_t low = (1u << (6 * i)) - 1;
            if ((first | low) == (last | low)) continue;
            if ((first & low) != 0) {
                sequence(from, first, first | low, length);
                return sequence(from, (first | low) + 1, last, length);
            }
            if ((last & low) != low) {
                sequence(from, first, (last & ~low) - 1, length);
                return sequence(from, last & ~low, last, length);
            }
        }
        const auto a = utf8(first, length), b = utf8(last, length);
        int at = to_;
        for (int i = length - 1; i > 0; i--) at = before(a[static_cast<size_t>(i)], b[static_cast<size_t>(i)], at);
        grammar_.addBytes(from, a[0], b[0], at);
    }

    /// A node from which a byte of the range leads to `to`.
    int before(uint8_t first, uint8_t last, int to) {
        const auto [found, isNew] = nodes_.try_emplace({first, last, to}, -1);
        if (isNew) {
            found->second = grammar_.addNode();
            grammar_.addBytes(found->second, first, last, to);
        }
        return found->second;
    }

    Grammar& grammar_;
    int to_;
    std::map<std::array<int, 3>, int> nodes_;
};

void addEscapes(Grammar& grammar, int from, const CharSet& set, bool noAngle, int to) {
    constexpr struct {
        char character, letter;
    } kShort[] = {{'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}};
    int backslash = -1, hex = -1;
    const auto afterBackslash = [&] {
        if (backslash < 0) backslash = grammar.byte(from, '\\');
        return backslash;
    };
    const auto unicode = [&](uint32_t c) {
        if (hex < 0) hex = grammar.text(afterBackslash(), "u00");
        const int digit = grammar.byte(hex, "0123"[c >> 4]);
        const char low = "0123456789abcdef"[c & 15];
        grammar.addBytes(digit, low, low, to);
        if (low >= 'a') grammar.addBytes(digit, low - 'a' + 'A', low - 'a' + 'A', to);
    };
    for (const auto& [character, letter] : kShort) {
        if (set.contains(static_cast<uint8_t>(character))) grammar.addBytes(afterBackslash(), letter, letter, to);
    }
    for (uint32_t c = 0; c < 0x20; c++) {
        const bool isShort = c == '\b' || c == '\f' || c == '\n' || c == '\r' || c == '\t';
        if (!isShort && set.contains(c)) unicode(c);
    }
    if (noAngle && set.contains('<')) unicode('<');
}

}  // namespace

CharSet::CharSet(std::initializer_list<Range> ranges) {
    for (const Range& range : ranges) add(range.first, range.last);
}

void CharSet::add(uint32_t first, uint32_t last) {
    DLLAMA_CHECK(first <= last && last <= kLast);
    if (first < kSurrogates.first && last > kSurrogates.last) {
        add(first, kSurrogates.first - 1);
        return add(kSurrogates.last + 1, last);
    }
    if (first >= kSurrogates.first && first <= kSurrogates.last) first = kSurrogates.last + 1;
    if (last >= kSurrogates.first && last <= kSurrogates.last) last = kSurrogates.first - 1;
    if (first > last) return;
    auto at = std::lower_bound(ranges_.begin(), ranges_.end(), first,
                               [](const Range& range, uint32_t c) { return range.last + 1 < c; });
    auto end = at;
    for (; end != ranges_.end() && end->first <= last + 1; ++end) {
        first = std::min(first, end->first);
        last = std::max(last, end->last);
    }
    at = ranges_.erase(at, end);
    ranges_.insert(at, {first, last});
}

void CharSet::add(const CharSet& other) {
    for (const Range& range : other.ranges_) add(range.first, range.last);
}

CharSet CharSet::complement() const {
    CharSet result;
    uint32_t next = 0;
    for (const Range& range : ranges_) {
        if (range.first > next) result.add(next, range.first - 1);
        next = range.last + 1;
    }
    if (next <= kLast) result.add(next, kLast);
    return result;
}

CharSet CharSet::without(const CharSet& other) const {
    CharSet both = complement();
    both.add(other);
    return both.complement();
}

bool CharSet::contains(uint32_t character) const {
    return std::any_of(ranges_.begin(), ranges_.end(),
                       [&](const Range& range) { return range.first <= character && character <= range.last; });
}

bool CharSet::contains(const CharSet& other) const {
    return other.without(*this).empty();
}

void addCharacter(Grammar& grammar, int from, const CharSet& set, Spelling spelling, int to) {
    CharSet asIs = set;
    if (spelling != Spelling::Raw) asIs = asIs.without(escaped());
    if (spelling != Spelling::Json) asIs = asIs.without({{'<', '<'}});
    Utf8Writer writer(grammar, to);
    for (const CharSet::Range& range : asIs.ranges()) writer.add(from, range);
    if (spelling != Spelling::Raw) addEscapes(grammar, from, set, spelling == Spelling::JsonNoAngle, to);
}

PlainClass plainClassOf(const CharSet& set, Spelling spelling) {
    const CharSet angle = {{'<', '<'}};
    CharSet json = CharSet::all().without(escaped());
    if (spelling == Spelling::Json && set.contains(json)) return PlainClass::Json;
    if (spelling == Spelling::Raw && set.contains(CharSet::all().without(angle))) return PlainClass::Angle;
    return set.contains(json.without(angle)) ? PlainClass::Both : PlainClass::None;
}

}  // namespace dllama::grammar
