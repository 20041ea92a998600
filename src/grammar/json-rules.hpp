#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/char-set.hpp"
#include "grammar/grammar.hpp"
#include "text/python-json.hpp"

namespace dllama::grammar {

/// The parts of JSON as rules of one grammar. Functions that take a node add to it and give the node behind.
///
/// White space is bounded, so that no answer is white space for ever: one blank behind a colon; behind a comma and
/// inside brackets one blank, or a line feed and up to 40 blanks or tabs.
class JsonRules {
  public:
    /// Digits of a number at most, before the point and behind it.
    static constexpr int kMaxDigits = 18;

    JsonRules(Grammar& grammar, Spelling spelling) : grammar_(grammar), spelling_(spelling) {}

    Grammar& grammar() { return grammar_; }
    /// Json or JsonNoAngle.
    Spelling spelling() const { return spelling_; }

    /// White space as above, not empty.
    int space();
    /// One character of a string, in any spelling that JSON has.
    int character();
    int anyValue();
    int anyObject();
    int anyArray();

    int optionalSpace(int from) { return grammar_.option(from, space()); }
    /// A string of min to max characters.
    int string(int from, int min, int max);
    /// A string without escapes that is none of `names`.
    int otherString(int from, std::span<const std::string> names);
    /// This very string, in its shortest spelling.
    int literalString(int from, std::string_view text);
    /// This very value, members in this order.
    int literal(int from, const PythonValue& value);
    /// A colon and what may follow it.
    int colon(int from);
    /// A comma and what may follow it.
    int comma(int from) { return optionalSpace(grammar_.byte(from, ',')); }
    /// `from` leads to one of `rules`.
    int anyOf(int from, std::span<const int> rules);
    /// An array of min to max values of the rule.
    int array(int from, int rule, int min, int max);
    /// An object of min to max members; key and value are rules.
    int map(int from, int key, int value, int min, int max);

  private:
    int anyString();

    Grammar& grammar_;
    Spelling spelling_;
    int space_ = -1, character_ = -1, anyValue_ = -1, anyObject_ = -1, anyArray_ = -1, anyString_ = -1;
};

/// The shortest JSON spelling of `text`, quotes included.
std::string jsonSpelling(std::string_view text, Spelling spelling);

/// A decimal number within bounds; texts are those of PythonValue numbers.
struct NumberBounds {
    struct Bound {
        std::string value;
        bool exclusive = false;
    };
    const Bound* least = nullptr;
    const Bound* most = nullptr;
    const std::string* multipleOf = nullptr;
};

/// An integer or any number: at most 18 digits before the point and 18 behind it; an exponent, of at most two digits,
/// only where there are no bounds. Throws ConfigError, without a place, for a multipleOf that is neither a whole number
/// up to 1,000 nor 0.1, 0.01, ..., and for bounds that leave nothing or do not fit.
int addNumber(Grammar& grammar, int from, bool integer, const NumberBounds& bounds);

}  // namespace dllama::grammar
