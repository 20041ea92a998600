#include "grammar/answer-parts.hpp"

#include <map>
#include <vector>

#include "grammar/char-set.hpp"
#include "text/chat-families.hpp"
#include "text/utf8.hpp"

namespace dllama::grammar {

int addMark(Grammar& grammar, int from, std::string_view mark, const Tokenizer& tokenizer) {
    const auto token = tokenizer.specialId(mark);
    if (!token) return grammar.text(from, mark);
    const int to = grammar.addNode();
    grammar.addToken(from, *token, to);
    return to;
}

int addTextUntil(Grammar& grammar, int from, std::span<const std::string_view> marks, const Tokenizer& tokenizer) {
    // A tree of the marks' characters. From each node an other character leads back to the text, < to the first one.
    struct Branch {
        int node;
        std::map<uint32_t, size_t> next;
        bool isMark = false;
    };
    const int text = grammar.addNode(), end = grammar.addNode();
    grammar.addSilent(from, text);
    std::vector<Branch> branches = {{text, {}, false}};
    const bool hasToken = tokenizer.specialId(marks[0]).has_value();
    for (std::string_view mark : marks) {
        size_t at = 0;
        for (std::string_view rest = mark; !rest.empty();) {
            const Utf8Step step = utf8Step(rest);
            rest.remove_prefix(step.length);
            const auto [found, isNew] = branches[at].next.try_emplace(step.codePoint, branches.size());
            at = found->second;
            if (!isNew) continue;
            const bool ends = rest.empty() && mark == marks[0] && !hasToken;
            branches.push_back({ends ? end : grammar.addNode(), {}, false});
        }
        branches[at].isMark = true;
    }
    const int opened = branches[branches[0].next.begin()->second].node;
    for (const Branch& branch : branches) {
        if (branch.isMark) continue;
        CharSet others = CharSet::all();
        for (const auto& [character, index] : branch.next) {
            const CharSet one = {{character, character}};
            others = others.without(one);
            const Branch& next = branches[index];
            if (character == '<' || (next.isMark && next.node != end)) continue;
            addCharacter(grammar, branch.node, one, Spelling::Raw, next.node);
        }
        addCharacter(grammar, branch.node, others, Spelling::Raw, text);
        grammar.addBytes(branch.node, '<', '<', opened);
        if (hasToken) grammar.addToken(branch.node, *tokenizer.specialId(marks[0]), end);
    }
    grammar.setLoops(text, PlainClass::Angle);
    return end;
}

int addLineFeeds(Grammar& grammar, int from) {
    const int rule = grammar.addRule("line feed");
    grammar.accept(grammar.byte(grammar.start(rule), '\n'));
    return grammar.call(from, rule, 0, 2);
}

int addThoughts(Grammar& grammar, int from, ChatFormat format, Thoughts thoughts, const Tokenizer& tokenizer) {
    const chat::Family& family = chat::familyOf(format);
    if (thoughts == Thoughts::None || family.thinkOpen.empty()) return addLineFeeds(grammar, from);
    const std::string_view marks[] = {family.thinkClose};
    int inside = from;
    if (thoughts == Thoughts::May) inside = addMark(grammar, addLineFeeds(grammar, from), family.thinkOpen, tokenizer);
    const int behind = addTextUntil(grammar, inside, marks, tokenizer);
    if (thoughts == Thoughts::May) grammar.addSilent(from, behind);
    return addLineFeeds(grammar, behind);
}

}  // namespace dllama::grammar
