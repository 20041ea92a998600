#pragma once

#include <cstdint>
#include <vector>

#include "grammar/grammar.hpp"

namespace dllama::grammar {

/// How a character is written in the text that a grammar describes.
enum class Spelling {
    Json,         ///< inside a JSON string
    JsonNoAngle,  ///< the same, but < as \u003c, so that no mark of a call can appear
    Raw,          ///< as it is; < does not appear
};

/// A set of Unicode characters (surrogates are none).
class CharSet {
  public:
    struct Range {
        uint32_t first, last;
        bool operator==(const Range&) const = default;
    };
    CharSet() = default;
    CharSet(std::initializer_list<Range> ranges);

    static CharSet all() { return CharSet().complement(); }
    void add(uint32_t first, uint32_t last);
    void add(const CharSet& other);
    CharSet complement() const;
    CharSet without(const CharSet& other) const;
    bool contains(uint32_t character) const;
    bool contains(const CharSet& other) const;
    bool empty() const { return ranges_.empty(); }
    const std::vector<Range>& ranges() const { return ranges_; }

  private:
    std::vector<Range> ranges_;  // ascending, apart from each other
};

/// Adds ways from `from` to `to` that read one character of the set. In JSON each character has one spelling here: the
/// short escape where there is one, \u00xx for other control characters, else itself.
void addCharacter(Grammar& grammar, int from, const CharSet& set, Spelling spelling, int to);

/// The largest class of which all characters are in the set and written as themselves.
PlainClass plainClassOf(const CharSet& set, Spelling spelling);

}  // namespace dllama::grammar
