#include "text/tokenizer.hpp"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/errors.hpp"
#include "text/bpe-merger.hpp"
#include "text/nfc.hpp"
#include "text/pre-tokenizer.hpp"
#include "text/sentencepiece-model.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

using Kind = TokenizerFile::Kind;

/// A special word like ChatGLM3's "sop" would be found inside others ("soprano"), so only the chat format can write it.
bool isWord(std::string_view text) {
    return std::all_of(text.begin(), text.end(),
                       [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); });
}

/// A mark of turns, thoughts or tools, by its text. What is neither (a word that a fine-tune added, GLM's /nothink that
/// users are told to type) is a token in any text.
bool isMark(std::string_view text) {
    constexpr std::string_view kTags[] = {"think",   "tool_call", "tool_calls", "tool_response", "tools",
                                          "arg_key", "arg_value", "function",   "parameter",     "s",
                                          "sop",     "eop",       "unk",        "pad",           "mask"};
    if (text.starts_with("<|") || text.starts_with("<｜") || text.starts_with('[')) return true;
    if (text.size() < 3 || text.front() != '<' || text.back() != '>') return false;
    text = text.substr(1, text.size() - 2);
    if (text.starts_with('/')) text.remove_prefix(1);
    return std::find(std::begin(kTags), std::end(kTags), text) != std::end(kTags);
}

}  // namespace

struct Tokenizer::Parts {
    explicit Parts(TokenizerFile source);

    using TokensByFirstByte = std::array<std::vector<const SpecialToken*>, 256>;

    /// Text in which only added tokens that are no control tokens are found.
    void encodePlain(std::string_view text, BpeMerger::Scratch& scratch, std::vector<int>& ids) const;
    void encodeWords(std::string_view text, BpeMerger::Scratch& scratch, std::vector<int>& ids) const;
    /// Calls plain(text) and special(id) for the parts of `text` in order.
    template <typename Plain, typename Special>
    static void parse(const TokensByFirstByte& tokens, std::string_view text, const Plain& plain,
                      const Special& special);

    TokenizerFile file;
    std::vector<bool> hidden;
    std::vector<bool> inSpecialList;
    std::vector<bool> eos;
    std::unordered_map<std::string_view, int> specialIds;
    TokensByFirstByte specialByFirstByte;  // longest first
    TokensByFirstByte addedByFirstByte;    // of these, what is found in any text
    bool hasAdded = false;
    std::optional<BpeMerger> merger;                  // Bpe, ScoredPieces
    std::optional<PreTokenizer> splitter;             // Bpe
    std::optional<SentencePieceModel> sentencePiece;  // SentencePiece
    bool addsBlank = false;
};

Tokenizer::Parts::Parts(TokenizerFile source) : file(std::move(source)) {
    const size_t size = file.vocab.size();
    hidden.resize(size);
    inSpecialList.resize(size);
    eos.resize(size);
    std::unordered_set<int> framing(file.eosIds.begin(), file.eosIds.end());  // ends and begins of texts and turns
    framing.insert(file.prefixIds.begin(), file.prefixIds.end());
    framing.insert(file.suffixIds.begin(), file.suffixIds.end());
    framing.insert(file.bosId);
    for (const SpecialToken& token : file.special) {
        const auto id = static_cast<size_t>(token.id);
        inSpecialList[id] = true;
        if (token.special) hidden[id] = true;
        specialIds.emplace(token.text, token.id);
        if (token.special && isWord(token.text)) continue;
        const auto first = static_cast<uint8_t>(token.text[0]);
        specialByFirstByte[first].push_back(&token);
        if (token.special || framing.contains(token.id) || isMark(token.text)) continue;
        addedByFirstByte[first].push_back(&token);
        hasAdded = true;
    }
    for (auto* list : {&specialByFirstByte, &addedByFirstByte}) {
        for (auto& tokens : *list) {
            std::stable_sort(tokens.begin(), tokens.end(),
                             [](const auto* a, const auto* b) { return a->text.size() > b->text.size(); });
        }
    }
    if (file.bosId >= 0) hidden[static_cast<size_t>(file.bosId)] = true;
    for (int id : file.eosIds) hidden[static_cast<size_t>(id)] = eos[static_cast<size_t>(id)] = true;
    for (size_t id = 0; id < size; id++) {
        if (file.vocab[id] == fmt::format("<|unused_{}|>", id)) hidden[id] = true;
    }

    if (file.kind == Kind::SentencePiece) {
        sentencePiece.emplace(file.model, file.textRules);
        const int nPieces = sentencePiece->nPieces();
        if (static_cast<size_t>(nPieces) > size) {
            throw FormatError("the sentencepiece model has {} pieces, the vocabulary {}", nPieces, size);
        }
        for (int id = 0; id < nPieces; id++) {
            if (sentencePiece->isControl(id)) hidden[static_cast<size_t>(id)] = true;
        }
        addsBlank = sentencePiece->addsBlank();
        if (!file.textRules.empty()) {
            for (std::string& token : file.vocab) token = SentencePieceModel::printed(token);
        }
        return;
    }
    std::vector<bool> ordinary(size);
    for (size_t id = 0; id < size; id++) ordinary[id] = !hidden[id] && !inSpecialList[id];
    merger.emplace(file, ordinary);
    if (file.kind == Kind::Bpe) {
        splitter.emplace(file.patterns);
    } else {
        addsBlank = true;
    }
}

void Tokenizer::Parts::encodePlain(std::string_view text, BpeMerger::Scratch& scratch, std::vector<int>& ids) const {
    if (!hasAdded) return encodeWords(text, scratch, ids);
    parse(
        addedByFirstByte, text, [&](std::string_view part) { encodeWords(part, scratch, ids); },
        [&](int id) { ids.push_back(id); });
}

void Tokenizer::Parts::encodeWords(std::string_view text, BpeMerger::Scratch& scratch, std::vector<int>& ids) const {
    if (text.empty()) return;
    switch (file.kind) {
        case Kind::Bpe: {
            std::string normal;
            if (file.normalizer == "nfc") {
                normal = toNfc(text);
                text = normal;
            }
            for (std::string_view piece : splitter->split(text)) merger->encode(piece, scratch, ids);
            break;
        }
        case Kind::ScoredPieces:
            merger->encode(std::string(1, ' ').append(text), scratch, ids);
            break;
        case Kind::SentencePiece:
            sentencePiece->encode(text, ids);
            break;
    }
}

template <typename Plain, typename Special>
void Tokenizer::Parts::parse(const TokensByFirstByte& tokens, std::string_view text, const Plain& plain,
                             const Special& special) {
    size_t done = 0;
    for (size_t i = 0; i < text.size();) {
        const auto& here = tokens[static_cast<uint8_t>(text[i])];
        const auto found = std::find_if(here.begin(), here.end(),
                                        [&](const auto* token) { return text.substr(i).starts_with(token->text); });
        if (found == here.end()) {
            i++;
            continue;
        }
        plain(text.substr(done, i - done));
        special((*found)->id);
        i += (*found)->text.size();
        done = i;
    }
    plain(text.substr(done));
}

Tokenizer::Tokenizer(TokenizerFile file) : parts_(std::make_unique<const Parts>(std::move(file))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

std::vector<int> Tokenizer::encode(std::string_view text, SpecialTokens mode, bool addPrefix) const {
    std::vector<int> ids;
    if (addPrefix) {
        ids = parts_->file.prefixIds;
        if (ids.empty() && parts_->file.addBos && parts_->file.bosId >= 0) ids.push_back(parts_->file.bosId);
    }
    std::string replaced;
    if (!isValidUtf8(text)) {
        replaced = replaceInvalidUtf8(text);
        text = replaced;
    }
    BpeMerger::Scratch scratch;
    const auto plain = [&](std::string_view part) { parts_->encodePlain(part, scratch, ids); };
    if (mode == SpecialTokens::Parse) {
        Parts::parse(parts_->specialByFirstByte, text, plain, [&](int id) { ids.push_back(id); });
    } else {
        plain(text);
    }
    if (addPrefix) ids.insert(ids.end(), parts_->file.suffixIds.begin(), parts_->file.suffixIds.end());
    return ids;
}

std::vector<int> Tokenizer::encode(std::span<const TextSegment> segments) const {
    std::vector<int> ids;
    BpeMerger::Scratch scratch;
    std::string waiting;  // plain text since the last special token or separate part
    const auto finish = [&] {
        parts_->encodePlain(isValidUtf8(waiting) ? waiting : replaceInvalidUtf8(waiting), scratch, ids);
        waiting.clear();
    };
    const auto special = [&](int id) {
        finish();
        ids.push_back(id);
    };
    for (const TextSegment& segment : segments) {
        if (segment.separate) finish();
        if (!segment.parseSpecial) {
            waiting += segment.text;
        } else if (const auto id = specialId(segment.text)) {
            special(*id);
        } else {
            Parts::parse(
                parts_->specialByFirstByte, segment.text, [&](std::string_view part) { waiting += part; }, special);
        }
        if (segment.separate) finish();
    }
    finish();
    return ids;
}

std::string Tokenizer::decode(std::span<const int> ids) const {
    StreamDecoder decoder(*this);
    std::string text;
    for (int id : ids) text += decoder.push(id);
    return text + decoder.flush();
}

std::string_view Tokenizer::piece(int id) const {
    if (id < 0 || id >= vocabSize()) return {};
    return parts_->file.vocab[static_cast<size_t>(id)];
}

int Tokenizer::vocabSize() const {
    return static_cast<int>(parts_->file.vocab.size());
}

std::optional<int> Tokenizer::specialId(std::string_view text) const {
    const auto found = parts_->specialIds.find(text);
    if (found == parts_->specialIds.end()) return std::nullopt;
    return found->second;
}

bool Tokenizer::isHidden(int id) const {
    return id < 0 || id >= vocabSize() || parts_->hidden[static_cast<size_t>(id)];
}
bool Tokenizer::isSpecial(int id) const {
    return isHidden(id) || parts_->inSpecialList[static_cast<size_t>(id)];
}
bool Tokenizer::isEos(int id) const {
    return id >= 0 && id < vocabSize() && parts_->eos[static_cast<size_t>(id)];
}
bool Tokenizer::addsBlank() const {
    return parts_->addsBlank;
}
const TokenizerFile& Tokenizer::file() const {
    return parts_->file;
}

void StreamDecoder::keep(std::span<const std::string_view> marks) {
    for (std::string_view mark : marks) {
        if (const auto id = tokenizer_.specialId(mark)) kept_.push_back(*id);
    }
}

std::string StreamDecoder::push(int id) {
    const std::string_view piece = tokenizer_.piece(id);
    if (tokenizer_.isSpecial(id)) {
        std::string text = take(true);
        atStart_ = true;
        const bool kept = std::find(kept_.begin(), kept_.end(), id) != kept_.end();
        if (keepSpecial_ || kept || !tokenizer_.isHidden(id)) text += piece;
        return text;
    }
    pending_ += atStart_ && tokenizer_.addsBlank() && piece.starts_with(' ') ? piece.substr(1) : piece;
    atStart_ = false;
    return take(false);
}

std::string StreamDecoder::flush() {
    return take(true);
}

std::string StreamDecoder::take(bool all) {
    std::string text;
    std::string_view rest = pending_;
    while (!rest.empty()) {
        const Utf8Step step = utf8Step(rest);
        if (step.cutOff && !all) break;
        text += step.valid ? rest.substr(0, step.length) : kReplacementCharacter;
        rest.remove_prefix(step.length);
    }
    pending_.erase(0, pending_.size() - rest.size());
    return text;
}

}  // namespace dllama
