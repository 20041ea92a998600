#include "grammar/vocabulary.hpp"

#include <algorithm>

#include "text/utf8.hpp"

namespace dllama::grammar {
namespace {

using Entry = std::pair<std::string_view, int>;

/// No real vocabulary has longer tokens; they would never be allowed.
constexpr size_t kMaxBytes = 1024;
/// Of longer tokens it is not told how many characters they have.
constexpr int kMaxCount = 32;

/// Of entries in ascending order, all different.
TokenTree treeOf(std::span<const Entry> entries) {
    TokenTree tree;
    std::vector<size_t> open;  // the nodes on the way to the last entry
    const auto closeTo = [&](size_t depth) {
        for (; open.size() > depth; open.pop_back())
            tree.nodes[open.back()].next = static_cast<uint32_t>(tree.nodes.size());
    };
    std::string_view last;
    for (const auto& [bytes, token] : entries) {
        const auto differ = std::mismatch(bytes.begin(), bytes.end(), last.begin(), last.end()).first;
        closeTo(static_cast<size_t>(differ - bytes.begin()));
        while (open.size() < bytes.size()) {
            const auto byte = static_cast<uint8_t>(bytes[open.size()]);
            open.push_back(tree.nodes.size());
            tree.nodes.push_back({-1, 0, static_cast<uint16_t>(open.size()), byte});
        }
        tree.nodes.back().token = token;
        last = bytes;
    }
    closeTo(0);
    return tree;
}

/// How many characters of the class the text is made of; 0: not of such alone.
int countPlain(std::string_view text, PlainClass plain) {
    int count = 0;
    for (; !text.empty(); count++) {
        const Utf8Step step = utf8Step(text);
        if (!step.valid) return 0;
        const char c = text[0];
        const bool json = step.length > 1 || (static_cast<uint8_t>(c) >= 0x20 && c != '"' && c != '\\');
        if (!json && plain != PlainClass::Angle) return 0;
        if (c == '<' && plain != PlainClass::Json) return 0;
        text.remove_prefix(step.length);
    }
    return count;
}

}  // namespace

Vocabulary::Vocabulary(const Tokenizer& tokenizer) : size_(tokenizer.vocabSize()), addsBlank_(tokenizer.addsBlank()) {
    std::vector<Entry> entries;
    for (int id = 0; id < size_; id++) {
        const std::string_view bytes = tokenizer.piece(id);
        if (!tokenizer.isSpecial(id) && !bytes.empty() && bytes.size() <= kMaxBytes) entries.emplace_back(bytes, id);
    }
    std::sort(entries.begin(), entries.end());
    std::vector<Entry> different;
    for (const Entry& entry : entries) {
        if (!different.empty() && different.back().first == entry.first) {
            twins_.emplace_back(different.back().second, entry.second);
        } else {
            different.push_back(entry);
        }
    }
    all_ = treeOf(different);
    const size_t nWords = (static_cast<size_t>(size_) + 31) / 32;
    for (PlainClass plain : {PlainClass::Json, PlainClass::Angle, PlainClass::Both}) {
        Class& made = classes_[static_cast<size_t>(plain)];
        std::vector<Entry> others;
        std::vector<std::vector<int>> byCount;
        for (const Entry& entry : different) {
            const int count = countPlain(entry.first, plain);
            if (count == 0) {
                others.push_back(entry);
                continue;
            }
            const auto n = static_cast<size_t>(std::min(count, kMaxCount));
            if (byCount.size() < n) byCount.resize(n);
            byCount[n - 1].push_back(entry.second);
        }
        made.others = treeOf(others);
        TokenSet set(nWords);
        for (const std::vector<int>& tokens : byCount) {
            for (int token : tokens) addToken(set, token);
            made.atMost.push_back(set);
        }
    }
}

std::span<const uint32_t> Vocabulary::plain(PlainClass plain, int count) const {
    const auto& atMost = classes_[static_cast<size_t>(plain)].atMost;
    if (count <= 0 || atMost.empty()) return {};
    return atMost[std::min(static_cast<size_t>(count), atMost.size()) - 1];
}

}  // namespace dllama::grammar
