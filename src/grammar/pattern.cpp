#include "grammar/pattern.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama::grammar {
namespace {

constexpr int kMaxDepth = 50, kMaxRepeat = 1000, kMaxStates = 20'000, kMaxCounted = 50'000;
constexpr int kEndless = Grammar::kUnbounded;
constexpr CharSet::Range kDigit = {'0', '9'};

const CharSet& lineEnds() {
    static const CharSet set = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    return set;
}
const CharSet& wordCharacters() {
    static const CharSet set = {kDigit, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    return set;
}
const CharSet& whiteSpace() {
    static const CharSet set = {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                                {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    return set;
}

/// A part of an expression.
struct Term {
    enum class Kind { Set, Sequence, Choice, Repeat };
    Kind kind = Kind::Sequence;
    CharSet set;
    std::vector<Term> parts;
    int min = 1, max = 1;  // of Repeat
};

Term termOf(CharSet set) {
    return {Term::Kind::Set, std::move(set), {}, 1, 1};
}

Term anything() {
    return {Term::Kind::Repeat, {}, {termOf(CharSet::all())}, 0, kEndless};
}

int addLengths(int a, int b) {
    return a == kEndless || b == kEndless || a > kEndless - 1 - b ? kEndless : a + b;
}

int timesLength(int length, int count) {
    if (length == 0 || count == 0) return 0;
    return length == kEndless || count == kEndless || length > (kEndless - 1) / count ? kEndless : length * count;
}

std::pair<int, int> lengths(const Term& term) {
    std::pair<int, int> result = {0, 0};
    switch (term.kind) {
        case Term::Kind::Set:
            return {1, 1};
        case Term::Kind::Sequence:
            for (const Term& part : term.parts) {
                const auto [low, high] = lengths(part);
                result = {addLengths(result.first, low), addLengths(result.second, high)};
            }
            return result;
        case Term::Kind::Choice:
            result.first = kEndless;
            for (const Term& part : term.parts) {
                const auto [low, high] = lengths(part);
                result = {std::min(result.first, low), std::max(result.second, high)};
            }
            return result;
        case Term::Kind::Repeat: {
            const auto [low, high] = lengths(term.parts[0]);
            return {timesLength(low, term.min), timesLength(high, term.max)};
        }
    }
    return result;
}

class Parser {
  public:
    explicit Parser(std::string_view text) : text_(text) {
        if (!isValidUtf8(text)) fail("is not UTF-8");
    }

    Term whole() {
        Term choice = alternatives(0);
        if (!atEnd()) fail("has a ) without a (");
        return choice;
    }

  private:
    [[noreturn]] void fail(std::string_view what) const { throw ConfigError("the pattern {:?} {}", text_, what); }
    bool atEnd() const { return at_ == text_.size(); }
    char peek() const { return atEnd() ? '\0' : text_[at_]; }
    bool take(std::string_view word) {
        if (!text_.substr(at_).starts_with(word)) return false;
        at_ += word.size();
        return true;
    }
    uint32_t character() {
        if (atEnd()) fail("ends too early");
        const Utf8Step step = utf8Step(text_.substr(at_));
        at_ += step.length;
        return step.codePoint;
    }

    Term alternatives(int depth) {
        if (depth > kMaxDepth) fail("has groups nested deeper than 50");
        Term choice{Term::Kind::Choice, {}, {}, 1, 1};
        do choice.parts.push_back(sequence(depth));
        while (take("|"));
        return choice;
    }

    /// Outside all groups an alternative may be anchored; where it is not, any text surrounds it.
    Term sequence(int depth) {
        Term result;
        if (depth == 0 && !take("^")) result.parts.push_back(anything());
        bool anchored = depth > 0;
        while (!atEnd() && peek() != '|' && peek() != ')') {
            if (depth == 0 && take("$")) {
                if (!atEnd() && peek() != '|') fail("has $ not at its end");
                anchored = true;
                break;
            }
            result.parts.push_back(repeated(atom(depth)));
        }
        if (!anchored) result.parts.push_back(anything());
        return result;
    }

    Term repeated(Term term) {
        for (;;) {
            int min = 0, max = kEndless;
            if (take("+")) {
                min = 1;
            } else if (take("?")) {
                max = 1;
            } else if (!take("*")) {
                if (!bounds(min, max)) return term;
            }
            if (take("+")) fail("has a possessive quantifier, which is not supported");
            take("?");  // lazy or not, the same texts match
            Term repeat{Term::Kind::Repeat, {}, {}, min, max};
            repeat.parts.push_back(std::move(term));
            term = std::move(repeat);
            if (peek() == '*' || peek() == '+' || peek() == '?') fail("has a quantifier behind a quantifier");
        }
    }

    /// {n}, {n,} or {n,m}; anything else is plain text.
    bool bounds(int& min, int& max) {
        const size_t begin = at_;
        if (!take("{")) return false;
        const auto number = [&](int& value) {
            const size_t first = at_;
            for (value = 0; !atEnd() && peek() >= '0' && peek() <= '9'; at_++) {
                value = value * 10 + (peek() - '0');
                if (value > kMaxRepeat) fail("repeats more than 1000 times");
            }
            return at_ > first;
        };
        if (!number(min)) {
            at_ = begin;
            return false;
        }
        max = min;
        if (take(",") && !number(max)) max = kEndless;
        if (!take("}")) fail("has a { without its }");
        if (max < min) fail("has bounds of a repetition in the wrong order");
        return true;
    }

    Term atom(int depth) {
        if (take("(")) {
            if (take("?")) {
                if (take("=") || take("!") || take("<=") || take("<!"))
                    fail("has a look-around, which is not supported");
                const bool named = take("<") || take("P<");
                if (named) {
                    while (!atEnd() && peek() != '>') at_++;
                    if (!take(">")) fail("has a group name without its >");
                } else if (!take(":")) {
                    fail("has an inline flag or a group of a kind that is not supported");
                }
            }
            Term group = alternatives(depth + 1);
            if (!take(")")) fail("has a ( without its )");
            return group;
        }
        if (take("[")) return termOf(characterClass());
        if (take(".")) return termOf(lineEnds().complement());
        if (take("\\")) return termOf(escape(false));
        const char c = peek();
        if (c == '^' || c == '$') fail("has an anchor that is not at its beginning or end");
        if (c == '*' || c == '+' || c == '?') fail("has a quantifier with nothing to repeat");
        const uint32_t character = this->character();
        return termOf({{character, character}});
    }

    CharSet characterClass() {
        const bool negated = take("^");
        CharSet set;
        for (bool first = true; !take("]"); first = false) {
            if (atEnd()) fail("has a [ without its ]");
            if (take("[:") || (!first && take("&&"))) fail("has a class of a kind that is not supported");
            const CharSet one = classItem();
            if (peek() == '-' && text_.substr(at_ + 1, 1) != "]" && at_ + 1 < text_.size()) {
                at_++;
                const CharSet other = classItem();
                const auto isOne = [](const CharSet& s) {
                    return s.ranges().size() == 1 && s.ranges()[0].first == s.ranges()[0].last;
                };
                if (!isOne(one) || !isOne(other) || one.ranges()[0].first > other.ranges()[0].first)
                    fail("has a range of characters that is none");
                set.add(one.ranges()[0].first, other.ranges()[0].first);
            } else {
                set.add(one);
            }
        }
        return negated ? set.complement() : set;
    }

    CharSet classItem() {
        if (take("\\")) return escape(true);
        const uint32_t c = character();
        return {{c, c}};
    }

    uint32_t hex(int nDigits) {
        uint32_t value = 0;
        for (int i = 0; i < nDigits; i++) {
            const uint32_t c = character();
            const bool digit = c >= '0' && c <= '9', letter = (c | 32) >= 'a' && (c | 32) <= 'f';
            if (!digit && !letter) fail("has an escape with too few hexadecimal digits");
            value = value * 16 + (digit ? c - '0' : (c | 32) - 'a' + 10);
        }
        return value;
    }

    CharSet escape(bool inClass) {
        const uint32_t c = character();
        const auto one = [](uint32_t character) { return CharSet{{character, character}}; };
        switch (c) {
            case 'd':
                return {kDigit};
            case 'D':
                return CharSet{kDigit}.complement();
            case 'w':
                return wordCharacters();
            case 'W':
                return wordCharacters().complement();
            case 's':
                return whiteSpace();
            case 'S':
                return whiteSpace().complement();
            case 't':
                return one('\t');
            case 'n':
                return one('\n');
            case 'r':
                return one('\r');
            case 'f':
                return one('\f');
            case 'v':
                return one('\v');
            case '0':
                return one(0);
            case 'x':
                return one(hex(2));
            case 'u': {
                const uint32_t value = hex(4);
                if (value >= 0xD800 && value <= 0xDFFF) fail("has a surrogate, which is no character");
                return one(value);
            }
            case 'b':
            case 'B':
                if (inClass && c == 'b') return one('\b');
                fail("has a word boundary, which is not supported");
            case 'p':
            case 'P':
                fail("has a Unicode property, which is not supported");
            default:
                break;
        }
        if (c >= '1' && c <= '9') fail("has a back reference, which is not supported");
        if (c == 'k') fail("has a back reference, which is not supported");
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) fail("has an escape that is not known");
        return one(c);
    }

    std::string_view text_;
    size_t at_ = 0;
};

}  // namespace

class PatternBuilder {
  public:
    explicit PatternBuilder(Pattern& pattern) : pattern_(pattern) {}

    int addState() {
        if (pattern_.states_.size() == kMaxStates)
            throw ConfigError("the pattern is too large: more than {} states", kMaxStates);
        pattern_.states_.emplace_back();
        return static_cast<int>(pattern_.states_.size()) - 1;
    }

    /// Adds the term behind `from`; gives the state behind it.
    int build(const Term& term, int from) {
        switch (term.kind) {
            case Term::Kind::Set: {
                const int to = addState();
                addEdge(from, term.set, to);
                return to;
            }
            case Term::Kind::Sequence:
                for (const Term& part : term.parts) from = build(part, from);
                return from;
            case Term::Kind::Choice: {
                if (term.parts.size() == 1) return build(term.parts[0], from);
                const int to = addState();
                for (const Term& part : term.parts) addSilent(build(part, from), to);
                return to;
            }
            case Term::Kind::Repeat:
                return repeat(term, from);
        }
        return from;
    }

  private:
    int repeat(const Term& term, int from) {
        const Term& part = term.parts[0];
        for (int i = 0; i < term.min; i++) from = build(part, from);
        if (term.max == kEndless) {
            const int loop = addState();
            addSilent(from, loop);
            if (part.kind == Term::Kind::Set) {
                addEdge(loop, part.set, loop);
            } else {
                addSilent(build(part, loop), loop);
            }
            return loop;
        }
        if (term.max == term.min) return from;
        const int to = addState();
        for (int i = term.min; i < term.max; i++) {
            addSilent(from, to);
            // A state of its own, so that the ways of a choice do not lead back into it.
            const int own = addState();
            addSilent(from, own);
            from = build(part, own);
        }
        addSilent(from, to);
        return to;
    }

    void addEdge(int from, const CharSet& set, int to) {
        pattern_.states_[static_cast<size_t>(from)].edges.push_back({set, to});
    }
    void addSilent(int from, int to) { pattern_.states_[static_cast<size_t>(from)].silent.push_back(to); }

    Pattern& pattern_;
};

Pattern::Pattern(std::string_view expression) {
    const Term term = Parser(expression).whole();
    PatternBuilder builder(*this);
    start_ = builder.addState();
    end_ = builder.build(term, start_);
    std::tie(shortest_, longest_) = lengths(term);
}

int Pattern::add(Grammar& grammar, int from, Spelling spelling, int min, int max) const {
    const bool counted = min > shortest_ || max < longest_;
    const int most = !counted ? 0 : max == kEndless ? min : max;
    if (counted && static_cast<int64_t>(most + 1) * static_cast<int64_t>(states_.size()) > kMaxCounted)
        throw ConfigError("a pattern of {} states with a length up to {} is too large: the product's limit is {}",
                          states_.size(), most, kMaxCounted);
    // Places are states, each with the number of characters so far where these count.
    std::map<std::pair<int, int>, int> nodes;
    std::vector<std::pair<int, int>> open;
    const auto nodeOf = [&](int state, int count) {
        const auto [found, isNew] = nodes.try_emplace({state, count}, -1);
        if (isNew) {
            found->second = grammar.addNode();
            open.emplace_back(state, count);
        }
        return found->second;
    };
    const int to = grammar.addNode();
    grammar.addSilent(from, nodeOf(start_, 0));
    while (!open.empty()) {
        const auto [state, count] = open.back();
        open.pop_back();
        const int node = nodeOf(state, count);
        if (state == end_ && (!counted || count >= min)) grammar.addSilent(node, to);
        for (int next : states_[static_cast<size_t>(state)].silent) grammar.addSilent(node, nodeOf(next, count));
        for (const Edge& edge : states_[static_cast<size_t>(state)].edges) {
            int after = counted ? count + 1 : 0;
            if (after > most) {
                if (max != kEndless) continue;
                after = most;
            }
            addCharacter(grammar, node, edge.set, spelling, nodeOf(edge.to, after));
            if (edge.to == state && after == count) grammar.setLoops(node, plainClassOf(edge.set, spelling));
        }
    }
    return to;
}

}  // namespace dllama::grammar
