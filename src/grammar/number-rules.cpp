#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "base/errors.hpp"
#include "grammar/json-rules.hpp"

/// Numbers within bounds: the digits are compared with those of the bounds as they are read. A text is "tight" to a
/// bound as long as its digits are the bound's.
namespace dllama::grammar {
namespace {

constexpr size_t kMaxDigits = JsonRules::kMaxDigits;
constexpr int kMaxMultiple = 1000;

/// A number as written out: digits before the point, without leading zeros but for "0", and behind it, without trailing
/// zeros.
struct Decimal {
    bool negative = false;
    std::string whole, fraction;

    bool isZero() const { return whole == "0" && fraction.empty(); }
    bool operator==(const Decimal&) const = default;
};

Decimal decimalOf(std::string_view text) {
    Decimal result;
    result.negative = text.starts_with('-');
    if (result.negative) text.remove_prefix(1);
    int exponent = 0;
    if (const size_t mark = text.find_first_of("eE"); mark != std::string_view::npos) {
        const size_t digits = mark + (text.substr(mark + 1).starts_with('+') ? 2 : 1);
        std::from_chars(text.data() + digits, text.data() + text.size(), exponent);
        text = text.substr(0, mark);
    }
    if (text.size() > 400 || exponent > 400 || exponent < -400)
        throw ConfigError("the number {} has more than 400 digits", text.substr(0, 40));
    const size_t point = std::min(text.find('.'), text.size());
    std::string digits(text.substr(0, point));
    if (point < text.size()) digits += text.substr(point + 1);
    int before = static_cast<int>(point) + exponent;  // digits before the point
    if (before < 0) {
        digits = std::string(static_cast<size_t>(-before), '0') + digits;
        before = 0;
    }
    if (static_cast<size_t>(before) > digits.size()) digits.resize(static_cast<size_t>(before), '0');
    result.whole = digits.substr(0, static_cast<size_t>(before));
    result.fraction = digits.substr(static_cast<size_t>(before));
    result.whole.erase(0, std::min(result.whole.find_first_not_of('0'), result.whole.size()));
    if (result.whole.empty()) result.whole.assign(1, '0');
    result.fraction.erase(result.fraction.find_last_not_of('0') + 1);
    if (result.isZero()) result.negative = false;
    return result;
}

struct Limit {
    Decimal value;
    bool exclusive = false;
};

struct Form {
    bool integer;
    int multiple;     ///< of the whole number; 1: any
    int maxFraction;  ///< digits behind the point
};

/// Magnitudes from `least` to `most`, both without a sign.
class Magnitudes {
  public:
    Magnitudes(Grammar& grammar, Form form, Limit least, Limit most, int to)
        : grammar_(grammar), form_(form), least_(std::move(least)), most_(std::move(most)), to_(to) {}

    void add(int from) {
        const size_t shortest = least_.value.whole.size();
        const size_t longest = std::min(most_.value.whole.size(), kMaxDigits);
        for (size_t n = shortest; n <= longest; n++) {
            const bool low = n == shortest, high = n == most_.value.whole.size();
            grammar_.addSilent(from, whole({n, 0, low, high, 0}));
        }
    }

  private:
    /// n: digits before the point in all; position: those read; low, high: tight to that bound; rest: modulo multiple.
    using Place = std::tuple<size_t, size_t, bool, bool, int>;

    int whole(const Place& place) {
        const auto [found, isNew] = wholes_.try_emplace(place, -1);
        if (!isNew) return found->second;
        const int node = grammar_.addNode();
        found->second = node;
        const auto [n, position, low, high, rest] = place;
        if (position == n) {
            endOfWhole(node, low, high, rest);
            return node;
        }
        const char first = position == 0 && n > 1 ? '1' : '0';
        const char from = low ? least_.value.whole[position] : first;
        const char to = high ? most_.value.whole[position] : '9';
        for (char digit = from; digit <= to; digit++) {
            const bool stillLow = low && digit == from, stillHigh = high && digit == to;
            const int next = whole({n, position + 1, stillLow, stillHigh, (rest * 10 + digit - '0') % form_.multiple});
            grammar_.addBytes(node, digit, digit, next);
        }
        return node;
    }

    void endOfWhole(int node, bool low, bool high, int rest) {
        if (rest == 0 && mayEnd(0, low, high)) grammar_.addSilent(node, to_);
        if (form_.integer || form_.multiple > 1 || form_.maxFraction == 0) return;
        grammar_.addSilent(grammar_.byte(node, '.'), fraction(0, low, high));
    }

    int fraction(int position, bool low, bool high) {
        const auto [found, isNew] = fractions_.try_emplace({position, low, high}, -1);
        if (!isNew) return found->second;
        const int node = grammar_.addNode();
        found->second = node;
        if (position > 0 && mayEnd(position, low, high)) grammar_.addSilent(node, to_);
        if (position == form_.maxFraction) return node;
        const auto digitOf = [&](const std::string& text) {
            return static_cast<size_t>(position) < text.size() ? text[static_cast<size_t>(position)] : '0';
        };
        const char from = low ? digitOf(least_.value.fraction) : '0', to = high ? digitOf(most_.value.fraction) : '9';
        for (char digit = from; digit <= to; digit++)
            grammar_.addBytes(node, digit, digit, fraction(position + 1, low && digit == from, high && digit == to));
        return node;
    }

    /// What was read, continued with zeros, is within the bounds.
    bool mayEnd(int position, bool low, bool high) const {
        const bool reachesLeast = static_cast<size_t>(position) >= least_.value.fraction.size();
        const bool reachesMost = static_cast<size_t>(position) >= most_.value.fraction.size();
        return (!low || (reachesLeast && !least_.exclusive)) && (!high || !reachesMost || !most_.exclusive);
    }

    Grammar& grammar_;
    Form form_;
    Limit least_, most_;
    int to_;
    std::map<Place, int> wholes_;
    std::map<std::tuple<int, bool, bool>, int> fractions_;
};

std::optional<Limit> limitOf(const NumberBounds::Bound* bound) {
    if (!bound) return std::nullopt;
    return Limit{decimalOf(bound->value), bound->exclusive};
}

Limit largest() {
    return {{false, std::string(kMaxDigits, '9'), std::string(kMaxDigits, '9')}, false};
}

Form formOf(bool integer, const std::string* multipleOf) {
    Form form{integer, 1, static_cast<int>(kMaxDigits)};
    if (!multipleOf) return form;
    const Decimal value = decimalOf(*multipleOf);
    const auto& fraction = value.fraction;
    if (fraction.empty() && !value.negative && value.whole.size() <= 4) {
        form.multiple = std::stoi(value.whole);
        if (form.multiple >= 1 && form.multiple <= kMaxMultiple) return form;
    } else if (value.whole == "0" && !value.negative && fraction.size() <= kMaxDigits && fraction.ends_with('1') &&
               fraction.find_first_not_of('0') == fraction.size() - 1) {
        form.multiple = 1;
        form.maxFraction = static_cast<int>(fraction.size());
        return form;
    }
    throw ConfigError("{} is neither a whole number from 1 to {} nor 0.1, 0.01, ...", *multipleOf, kMaxMultiple);
}

/// Digits, point and exponent as JSON has them, within the limits of length.
int addUnboundedNumber(Grammar& grammar, int from) {
    const int end = grammar.addNode();
    const auto digits = [&](int at, int most, int to) {
        for (int i = 0; i < most; i++) {
            const int next = grammar.addNode();
            grammar.addBytes(at, '0', '9', next);
            grammar.addSilent(next, to);
            at = next;
        }
    };
    const int sign = grammar.byte(from, '-');
    grammar.addSilent(from, sign);
    const int whole = grammar.addNode();
    grammar.addBytes(sign, '0', '0', whole);
    const int first = grammar.addNode();
    grammar.addBytes(sign, '1', '9', first);
    grammar.addSilent(first, whole);
    digits(first, static_cast<int>(kMaxDigits) - 1, whole);
    const int fraction = grammar.addNode();
    grammar.addSilent(whole, fraction);
    digits(grammar.byte(whole, '.'), static_cast<int>(kMaxDigits), fraction);
    grammar.addSilent(fraction, end);
    const int exponent = grammar.addNode(), signedExponent = grammar.addNode();
    for (char c : {'e', 'E'}) grammar.addBytes(fraction, c, c, exponent);
    for (char c : {'+', '-'}) grammar.addBytes(exponent, c, c, signedExponent);
    grammar.addSilent(exponent, signedExponent);
    digits(signedExponent, 2, end);
    return end;
}

}  // namespace

int addNumber(Grammar& grammar, int from, bool integer, const NumberBounds& bounds) {
    if (!integer && !bounds.least && !bounds.most && !bounds.multipleOf) return addUnboundedNumber(grammar, from);
    const Form form = formOf(integer, bounds.multipleOf);
    const std::optional<Limit> least = limitOf(bounds.least), most = limitOf(bounds.most);
    const int to = grammar.addNode();
    const Limit zero{{false, "0", ""}, false};
    if (!most || !most->value.negative) {
        const bool fromLeast = least && !least->value.negative;
        Magnitudes(grammar, form, fromLeast ? *least : zero, most ? *most : largest(), to).add(from);
    }
    if (!least || least->value.negative) {
        // Magnitudes behind a minus; zero itself has none.
        Limit nearest{{false, "0", ""}, true}, farthest = least ? *least : largest();
        if (most && most->value.negative) nearest = *most;
        nearest.value.negative = farthest.value.negative = false;
        Magnitudes(grammar, form, nearest, farthest, to).add(grammar.byte(from, '-'));
    }
    return to;
}

}  // namespace dllama::grammar
