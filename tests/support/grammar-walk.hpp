#pragma once

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/token-constraint.hpp"
#include "format/tokenizer-file.hpp"
#include "text/tokenizer.hpp"

namespace dllama::test {

/// 256 bytes and pieces as vocabularies have them: JSON's punctuation in groups, words, halves of characters, names
/// that go past the end of a string. Then the special tokens.
inline TokenizerFile jsonTokenizer(const std::vector<std::string>& special = {"<|end|>"}) {
    TokenizerFile file;
    for (int byte = 0; byte < 256; byte++) file.vocab.emplace_back(1, static_cast<char>(byte));
    for (const char* text : {"{\"",
                             "\":",
                             "\",",
                             "\"}",
                             "\"]",
                             "},",
                             "],",
                             "[]",
                             "{}",
                             "[[",
                             "]]",
                             "}}",
                             "\":\"",
                             "\",\"",
                             "\": \"",
                             "\", \"",
                             "\n ",
                             "\n  ",
                             "  ",
                             "    ",
                             ", ",
                             ": ",
                             " {",
                             " [",
                             "tr",
                             "ue",
                             "true",
                             "null",
                             "false",
                             " true",
                             " null",
                             "al",
                             "12",
                             "123",
                             "00",
                             "0.",
                             "1.5",
                             "-1",
                             "e1",
                             "name",
                             "age",
                             " the",
                             "he",
                             "value",
                             "a\"",
                             "a\":",
                             "kind\":\"cat\"",
                             "\\n",
                             "\\\"",
                             "\\\\",
                             "\\u",
                             "u00",
                             "\\ud8",
                             "\xC3",
                             "\xC3\xA9",
                             "\xA9\xC3",
                             "\xF0\x9F",
                             "\x98\x80",
                             "\xE7\x95",
                             "\x8C\"",
                             "\xE7\x95\x8C",
                             "\xE2\x80\xA8",
                             "\xC0\xAF",
                             "\xED\xA0\x80",
                             "</",
                             "think",
                             "<arg",
                             "_value>",
                             "20",
                             "-0",
                             "T1",
                             ":00",
                             "@ex",
                             ".org",
                             "://",
                             "::"})
        file.vocab.emplace_back(text);
    for (const std::string& text : special) {
        file.special.push_back({static_cast<int>(file.vocab.size()), text, true});
        file.vocab.push_back(text);
    }
    for (size_t id = 0; id < file.vocab.size(); id++) file.scores.push_back(-static_cast<float>(id));
    file.eosIds = {static_cast<int>(file.vocab.size()) - 1};
    file.patterns = {"[\\s\\S]"};
    return file;
}

/// An answer of random tokens, as text with the special tokens in it. After a while what closes a string, a list or an
/// object is taken where it is allowed. Nothing if the answer has not ended after `most` tokens.
inline std::optional<std::string> walk(TokenConstraint& constraint, const Tokenizer& tokenizer, unsigned seed,
                                       int most = 4000) {
    std::mt19937 random(seed);
    std::vector<uint32_t> bits((static_cast<size_t>(tokenizer.vocabSize()) + 31) / 32);
    std::string text;
    const int patience = static_cast<int>(random() % 60);
    for (int n = 0; n < most; n++) {
        if (constraint.mustEnd()) return text;
        if (constraint.mayEnd() && (n > patience || random() % 2 == 0)) return text;
        constraint.mask(bits);
        std::vector<int> allowed, closing;
        for (int id = 0; id < tokenizer.vocabSize(); id++) {
            if (!(bits[static_cast<size_t>(id) / 32] >> (id % 32) & 1)) continue;
            allowed.push_back(id);
            const char first = tokenizer.piece(id)[0];
            if (tokenizer.isSpecial(id) || first == '"' || first == ']' || first == '}') closing.push_back(id);
        }
        if (allowed.empty()) {
            text += " NO TOKEN";
            return text;
        }
        const auto& from = !closing.empty() && (n > patience || random() % 4 == 0) ? closing : allowed;
        const int id = from[random() % from.size()];
        constraint.accept(id);
        text += tokenizer.piece(id);
    }
    return std::nullopt;
}

}  // namespace dllama::test
