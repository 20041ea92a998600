#include <algorithm>

#include "format/tokenizer-parts.hpp"

namespace dllama::tokenizer_file {
namespace {

// Published with the models' tokenizers: Llama 3 tokenizer.py, Qwen2 tokenizer.json.
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Ids below belong to the bytes of a byte-level vocabulary, so that a BOS there says nothing about where specials
// begin.
constexpr int kFirstPossibleSpecial = 256;

bool isTag(std::string_view text) {
    return text.size() > 4 && text.starts_with("<|") && text.ends_with("|>");
}

}  // namespace

void guessDescription(TokenizerFile& file) {
    const int size = static_cast<int>(file.vocab.size());
    int firstSpecial = size;
    if (file.bosId >= kFirstPossibleSpecial) firstSpecial = file.bosId;
    for (int id : file.eosIds) {
        if (id >= kFirstPossibleSpecial) firstSpecial = std::min(firstSpecial, id);
    }
    while (firstSpecial > 0 && isTag(file.vocab[static_cast<size_t>(firstSpecial) - 1])) firstSpecial--;
    bool byId = firstSpecial > 0;
    for (int id = 0; id < firstSpecial && byId; id++) {
        byId = file.scores[static_cast<size_t>(id)] == -static_cast<float>(id);
    }
    if (byId) {
        const bool qwen =
            file.chatTemplate.find("<|im_start|>") != std::string::npos ||
            std::find(file.vocab.begin() + firstSpecial, file.vocab.end(), "<|im_start|>") != file.vocab.end();
        file.kind = TokenizerFile::Kind::Bpe;
        file.patterns = {qwen ? kQwen2Pattern : kLlama3Pattern};
        file.normalizer = qwen ? "nfc" : "";
        file.ignoreMerges = true;
        for (int id = firstSpecial; id < size; id++) {
            const std::string& text = file.vocab[static_cast<size_t>(id)];
            const bool end =
                id == file.bosId || std::find(file.eosIds.begin(), file.eosIds.end(), id) != file.eosIds.end();
            file.special.push_back({id, text, end || isTag(text)});
        }
        return;
    }
    file.kind = TokenizerFile::Kind::ScoredPieces;
    std::vector<int> ids = file.eosIds;
    if (file.bosId >= 0) ids.push_back(file.bosId);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (int id : ids) file.special.push_back({id, file.vocab[static_cast<size_t>(id)], true});
}

}  // namespace dllama::tokenizer_file
