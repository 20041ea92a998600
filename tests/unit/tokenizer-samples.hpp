#pragma once

#include <string>
#include <vector>

#include "format/tokenizer-file.hpp"

/// Tiny tokenizers that need no files.
namespace dllama::test {

/// 256 bytes, then "he", "ll", "hell", "hello", " w", "or", "é" in two bytes, then the markers <s>, <think>, <|x|>.
inline TokenizerFile tinyBpe() {
    TokenizerFile file;
    for (int byte = 0; byte < 256; byte++) file.vocab.emplace_back(1, static_cast<char>(byte));
    for (const char* text : {"he", "ll", "hell", "hello", " w", "or", "\xC3\xA9"}) file.vocab.emplace_back(text);
    for (const char* text : {"<s>", "<think>", "<|x|>"}) {
        file.special.push_back({static_cast<int>(file.vocab.size()), text, std::string(text) != "<think>"});
        file.vocab.emplace_back(text);
    }
    for (size_t id = 0; id < file.vocab.size(); id++) file.scores.push_back(-static_cast<float>(id));
    file.bosId = 263;
    file.addBos = true;
    file.eosIds = {265};
    file.patterns = {"\\s?\\w+|\\s+|[^\\s\\w]+"};
    file.chatTemplate = "{{ messages }}";
    file.chatFormat = "chatml";
    return file;
}

/// A vocabulary as distributed-llama writes one of sentencepiece: <unk>, <s>, </s>, the bytes, then pieces with scores.
inline TokenizerFile tinyScored() {
    TokenizerFile file;
    file.kind = TokenizerFile::Kind::ScoredPieces;
    for (const char* text : {"<unk>", "<s>", "</s>"}) file.vocab.emplace_back(text);
    for (int byte = 0; byte < 256; byte++) file.vocab.emplace_back(1, static_cast<char>(byte));
    file.scores.assign(file.vocab.size(), 0.0f);
    float score = -1;
    for (const char* text : {" a", "ab", " ab", "bab", " ", "a", "b", "\xE4\xBD\xA0"}) {
        file.vocab.emplace_back(text);
        file.scores.push_back(score--);
    }
    file.bosId = 1;
    file.addBos = true;
    file.eosIds = {2};
    file.special = {{1, "<s>", true}, {2, "</s>", true}};
    return file;
}

}  // namespace dllama::test
