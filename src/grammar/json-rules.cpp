#include "grammar/json-rules.hpp"

#include <algorithm>
#include <map>

#include "text/utf8.hpp"

namespace dllama::grammar {
namespace {

constexpr int kMaxIndent = 40;

CharSet oneCharacter(uint32_t c) {
    return {{c, c}};
}

/// \u and four hexadecimal digits; pairs of surrogates are one character, single ones none.
void addUnicodeEscapes(Grammar& grammar, int backslash, int to) {
    const auto hex = [&](int from, std::string_view digits, int next) {
        for (char c : digits) {
            const char upper = c >= 'a' ? static_cast<char>(c - 'a' + 'A') : c;
            grammar.addBytes(from, c, c, next);
            if (upper != c) grammar.addBytes(from, upper, upper, next);
        }
    };
    constexpr std::string_view kAll = "0123456789abcdef";
    const int u = grammar.byte(backslash, 'u');
    const int lastTwo = grammar.addNode(), last = grammar.addNode();
    hex(lastTwo, kAll, last);
    hex(last, kAll, to);
    const int second = grammar.addNode(), afterD = grammar.addNode();
    hex(u, "0123456789abcef", second);
    hex(second, kAll, lastTwo);
    hex(u, "d", afterD);
    hex(afterD, "01234567", lastTwo);
    const int high = grammar.addNode(), high2 = grammar.addNode(), high3 = grammar.addNode();
    hex(afterD, "89ab", high);
    hex(high, kAll, high2);
    hex(high2, kAll, high3);
    const int low = grammar.text(high3, "\\u");
    const int low1 = grammar.addNode(), low2 = grammar.addNode();
    hex(low, "d", low1);
    hex(low1, "cdef", low2);
    hex(low2, kAll, last);
}

}  // namespace

std::string jsonSpelling(std::string_view text, Spelling spelling) {
    PythonValue value;
    value.type = PythonValue::Type::String;
    value.text = text;
    const std::string plain = toPythonJson(value);
    if (spelling != Spelling::JsonNoAngle) return plain;
    std::string out;
    for (char c : plain) {
        if (c == '<') {
            out += "\\u003c";
        } else {
            out += c;
        }
    }
    return out;
}

int JsonRules::space() {
    if (space_ >= 0) return space_;
    space_ = grammar_.addRule("white space");
    const int end = grammar_.addNode();
    grammar_.accept(end);
    grammar_.addBytes(grammar_.start(space_), ' ', ' ', end);
    int line = grammar_.byte(grammar_.start(space_), '\n');
    grammar_.accept(line);
    for (int i = 0; i < kMaxIndent; i++) {
        const int next = grammar_.addNode();
        grammar_.addBytes(line, ' ', ' ', next);
        grammar_.addBytes(line, '\t', '\t', next);
        grammar_.accept(next);
        line = next;
    }
    return space_;
}

int JsonRules::character() {
    if (character_ >= 0) return character_;
    character_ = grammar_.addRule("character");
    const int start = grammar_.start(character_), end = grammar_.addNode();
    grammar_.accept(end);
    const CharSet plain = CharSet::all().without({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
    addCharacter(grammar_, start, spelling_ == Spelling::Json ? plain : plain.without(oneCharacter('<')), spelling_,
                 end);
    grammar_.setReads(start, plainClassOf(plain, spelling_));
    const int backslash = grammar_.byte(start, '\\');
    for (char c : std::string_view("\"\\/bfnrt")) grammar_.addBytes(backslash, c, c, end);
    addUnicodeEscapes(grammar_, backslash, end);
    return character_;
}

int JsonRules::string(int from, int min, int max) {
    const int open = grammar_.byte(from, '"');
    return grammar_.byte(max == 0 ? open : grammar_.call(open, character(), min, max), '"');
}

int JsonRules::otherString(int from, std::span<const std::string> names) {
    const int quote = grammar_.byte(from, '"'), end = grammar_.addNode(), rest = grammar_.addNode();
    const CharSet plain = CharSet::all().without({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {'<', '<'}});
    addCharacter(grammar_, rest, plain, spelling_, rest);
    grammar_.setLoops(rest, PlainClass::Both);
    grammar_.addBytes(rest, '"', '"', end);
    struct Branch {
        std::map<uint32_t, int> next;
        bool isName = false;
    };
    std::vector<Branch> branches(1);
    for (std::string_view name : names) {
        size_t at = 0;
        while (!name.empty()) {
            const Utf8Step step = utf8Step(name);
            name.remove_prefix(step.length);
            const auto [found, isNew] =
                branches[at].next.try_emplace(step.codePoint, static_cast<int>(branches.size()));
            at = static_cast<size_t>(found->second);
            if (isNew) branches.emplace_back();
        }
        branches[at].isName = true;
    }
    std::vector<int> nodes = {quote};
    for (size_t i = 1; i < branches.size(); i++) nodes.push_back(grammar_.addNode());
    for (size_t i = 0; i < branches.size(); i++) {
        CharSet others = plain;
        for (const auto& [character, next] : branches[i].next) {
            const CharSet one = oneCharacter(character);
            others = others.without(one);
            if (plain.contains(character))
                addCharacter(grammar_, nodes[i], one, spelling_, nodes[static_cast<size_t>(next)]);
        }
        addCharacter(grammar_, nodes[i], others, spelling_, rest);
        if (!branches[i].isName) grammar_.addBytes(nodes[i], '"', '"', end);
    }
    return end;
}

int JsonRules::literalString(int from, std::string_view text) {
    return grammar_.text(from, jsonSpelling(text, spelling_));
}

int JsonRules::colon(int from) {
    const int colon = grammar_.byte(from, ':'), blank = grammar_.byte(colon, ' ');
    grammar_.addSilent(colon, blank);
    return blank;
}

int JsonRules::literal(int from, const PythonValue& value) {
    using Type = PythonValue::Type;
    switch (value.type) {
        case Type::Null:
            return grammar_.text(from, "null");
        case Type::Boolean:
            return grammar_.text(from, value.boolean ? "true" : "false");
        case Type::Number:
            return grammar_.text(from, value.text);
        case Type::String:
            return literalString(from, value.text);
        case Type::List: {
            int at = grammar_.byte(from, '[');
            for (size_t i = 0; i < value.items.size(); i++) {
                at = i == 0 ? optionalSpace(at) : comma(at);
                at = literal(at, value.items[i]);
            }
            return grammar_.byte(optionalSpace(at), ']');
        }
        case Type::Object: {
            int at = grammar_.byte(from, '{');
            for (size_t i = 0; i < value.members.size(); i++) {
                at = i == 0 ? optionalSpace(at) : comma(at);
                at = literal(colon(literalString(at, value.members[i].name)), value.members[i].value);
            }
            return grammar_.byte(optionalSpace(at), '}');
        }
    }
    return from;
}

int JsonRules::anyOf(int from, std::span<const int> rules) {
    const int to = grammar_.addNode();
    for (int rule : rules) grammar_.addCall(from, rule, to);
    return to;
}

int JsonRules::array(int from, int rule, int min, int max) {
    const int open = grammar_.byte(from, '[');
    const int end = grammar_.addNode();
    if (min == 0) grammar_.addSilent(optionalSpace(open), end);
    if (max > 0) {
        const int more = grammar_.addRule("items");
        grammar_.accept(grammar_.call(comma(grammar_.start(more)), rule));
        const int first = grammar_.call(optionalSpace(open), rule);
        const int rest = max == Grammar::kUnbounded ? max : max - 1;
        const int all = rest == 0 ? first : grammar_.call(first, more, std::max(min - 1, 0), rest);
        grammar_.addSilent(optionalSpace(all), end);
    }
    return grammar_.byte(end, ']');
}

int JsonRules::map(int from, int key, int value, int min, int max) {
    const int open = grammar_.byte(from, '{');
    const int end = grammar_.addNode();
    if (min == 0) grammar_.addSilent(optionalSpace(open), end);
    if (max > 0) {
        const int more = grammar_.addRule("members");
        const auto member = [&](int at) { return grammar_.call(colon(grammar_.call(at, key)), value); };
        grammar_.accept(member(comma(grammar_.start(more))));
        const int first = member(optionalSpace(open));
        const int rest = max == Grammar::kUnbounded ? max : max - 1;
        const int all = rest == 0 ? first : grammar_.call(first, more, std::max(min - 1, 0), rest);
        grammar_.addSilent(optionalSpace(all), end);
    }
    return grammar_.byte(end, '}');
}

int JsonRules::anyString() {
    if (anyString_ >= 0) return anyString_;
    anyString_ = grammar_.addRule("string");
    grammar_.accept(string(grammar_.start(anyString_), 0, Grammar::kUnbounded));
    return anyString_;
}

int JsonRules::anyObject() {
    if (anyObject_ >= 0) return anyObject_;
    anyObject_ = grammar_.addRule("object");
    grammar_.accept(map(grammar_.start(anyObject_), anyString(), anyValue(), 0, Grammar::kUnbounded));
    return anyObject_;
}

int JsonRules::anyArray() {
    if (anyArray_ >= 0) return anyArray_;
    anyArray_ = grammar_.addRule("array");
    grammar_.accept(array(grammar_.start(anyArray_), anyValue(), 0, Grammar::kUnbounded));
    return anyArray_;
}

int JsonRules::anyValue() {
    if (anyValue_ >= 0) return anyValue_;
    anyValue_ = grammar_.addRule("value");
    const int start = grammar_.start(anyValue_), end = grammar_.addNode();
    grammar_.accept(end);
    for (std::string_view word : {"null", "true", "false"}) grammar_.addSilent(grammar_.text(start, word), end);
    grammar_.addSilent(addNumber(grammar_, start, false, {}), end);
    for (int rule : {anyString(), anyObject(), anyArray()}) grammar_.addCall(start, rule, end);
    return anyValue_;
}

}  // namespace dllama::grammar
