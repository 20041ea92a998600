#include "format/tokenizer-file.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>

#include "base/byte-reader.hpp"
#include "base/json.hpp"
#include "base/mapped-file.hpp"

namespace dllama {
namespace {

using nlohmann::json;

constexpr int32_t kMagic = 0x567124;
constexpr int32_t kOldMagic = 0x567123;
constexpr int32_t kTrailerMagic = 0x4a544c44;
constexpr int32_t kMaxHeaderPairs = 64;

enum Key : int32_t {
    kVersion = 0,
    kVocabSize = 1,
    kMaxTokenLength = 2,
    kBosId = 3,
    kEosId = 4,
    kPadId = 5,
    kChatEosId = 6,
    kChatTemplate = 7,
    kChatStop = 8,
    kEosCount = 9,
    kAddBos = 10,
};

struct Header {
    int32_t version = -1;
    int32_t vocabSize = 0;
    int32_t templateBytes = 0;
    int32_t chatStopBytes = 0;
    int32_t eosCount = 0;
    int32_t addBos = -1;  // -1: the key is absent
};

int32_t readLength(int32_t value, const char* what, const ByteReader& reader) {
    if (value < 0 || static_cast<uint32_t>(value) > reader.size()) {
        throw FormatError("{}: {} is {}, the file has {} bytes", reader.fileName(), what, value, reader.size());
    }
    return value;
}

Header readHeader(ByteReader& reader, TokenizerFile& file) {
    const auto magic = reader.read<int32_t>("the magic number");
    if (magic == kOldMagic) {
        throw FormatError("{}: the old distributed-llama tokenizer format 0x567123 is not read: convert it again",
                          reader.fileName());
    }
    if (magic != kMagic) {
        throw FormatError("{}: not a tokenizer file: the magic number is {:#x}, not {:#x}", reader.fileName(),
                          static_cast<uint32_t>(magic), kMagic);
    }
    const auto headerSize = reader.read<int32_t>("the header size");
    if (headerSize < 8 || (headerSize - 8) % 8 != 0 || (headerSize - 8) / 8 > kMaxHeaderPairs) {
        throw FormatError("{}: the header size is {}, not 8 to {} in steps of 8", reader.fileName(), headerSize,
                          8 + 8 * kMaxHeaderPairs);
    }
    Header header;
    for (int i = 0; i < (headerSize - 8) / 8; i++) {
        const auto key = reader.read<int32_t>("a header key");
        const auto value = reader.read<int32_t>("a header value");
        switch (key) {
            case kVersion:
                header.version = value;
                break;
            case kVocabSize:
                header.vocabSize = readLength(value, "the vocabulary size", reader);
                break;
            case kMaxTokenLength:
                break;  // follows from the vocabulary
            case kBosId:
                file.bosId = value;
                break;
            case kEosId:
            case kChatEosId:
                file.eosIds.push_back(value);
                break;
            case kPadId:
                break;
            case kChatTemplate:
                header.templateBytes = readLength(value, "the chat template's length", reader);
                break;
            case kChatStop:
                header.chatStopBytes = readLength(value, "the chat stop's length", reader);
                break;
            case kEosCount:
                header.eosCount = readLength(value, "the number of end tokens", reader);
                break;
            case kAddBos:
                header.addBos = value;
                break;
            default:
                throw FormatError("{}: unknown header key {}", reader.fileName(), key);
        }
    }
    if (header.version != 1) {
        throw FormatError("{}: tokenizer version {}, only 1 is known", reader.fileName(), header.version);
    }
    if (header.vocabSize < 1) throw FormatError("{}: the vocabulary is empty", reader.fileName());
    return header;
}

void readVocabulary(ByteReader& reader, int32_t size, TokenizerFile& file) {
    // An entry takes at least nine bytes, which bounds the memory by the file.
    if (static_cast<uint64_t>(size) * 9 > reader.remaining()) {
        throw FormatError("{}: {} tokens need at least {} bytes, {} are left", reader.fileName(), size,
                          static_cast<uint64_t>(size) * 9, reader.remaining());
    }
    file.vocab.reserve(static_cast<size_t>(size));
    file.scores.reserve(static_cast<size_t>(size));
    for (int32_t id = 0; id < size; id++) {
        file.scores.push_back(reader.read<float>("a token's score"));
        const auto length = reader.read<int32_t>("a token's length");
        if (length < 1) throw FormatError("{}: token {} has length {}", reader.fileName(), id, length);
        file.vocab.emplace_back(reader.text(static_cast<uint64_t>(length), "a token's text"));
    }
}

void checkId(int64_t id, size_t vocabSize, const char* what, const std::string& name) {
    if (id < 0 || static_cast<uint64_t>(id) >= vocabSize) {
        throw FormatError("{}: {} {} is outside the vocabulary of {}", name, what, id, vocabSize);
    }
}

/// The rules that a file must keep however it came to be.
void checkFile(const TokenizerFile& file, const std::string& name) {
    const size_t size = file.vocab.size();
    if (size == 0 || size > INT_MAX || file.scores.size() != size) {
        throw FormatError("{}: {} tokens and {} scores", name, size, file.scores.size());
    }
    for (size_t id = 0; id < size; id++) {
        if (file.vocab[id].empty()) throw FormatError("{}: token {} is empty", name, id);
    }
    if (file.bosId != -1) checkId(file.bosId, size, "the BOS id", name);
    for (int id : file.eosIds) checkId(id, size, "end token", name);
    for (int id : file.prefixIds) checkId(id, size, "prefix token", name);
    for (int id : file.suffixIds) checkId(id, size, "suffix token", name);
    for (const SpecialToken& token : file.special) {
        checkId(token.id, size, "special token", name);
        if (token.text.empty()) throw FormatError("{}: special token {} has no text", name, token.id);
    }
    for (const auto& [left, right] : file.merges) {
        checkId(left, size, "merged token", name);
        checkId(right, size, "merged token", name);
    }
    if (file.kind == TokenizerFile::Kind::Bpe && file.patterns.empty()) throw FormatError("{}: no pattern", name);
    if (file.kind == TokenizerFile::Kind::SentencePiece && file.model.empty()) {
        throw FormatError("{}: no sentencepiece model", name);
    }
    if (!file.normalizer.empty() && file.normalizer != "nfc") {
        throw FormatError("{}: unknown normalizer \"{}\"", name, file.normalizer);
    }
    if (!file.textRules.empty() && file.textRules != "chatglm-6b") {
        throw FormatError("{}: unknown text rules \"{}\"", name, file.textRules);
    }
}

// --- the described form ---------------------------------------------------------------------------------------------

/// The JSON document with errors that name file and field.
class Document {
  public:
    Document(std::string_view text, const std::string& name) : name_(name) {
        root_ = parseJson(text);
        if (!root_.is_object()) throw FormatError("{}: the JSON document is damaged", name);
        constexpr const char* kKnown[] = {"format",        "kind",       "pattern",     "normalizer",
                                          "ignore_merges", "n_merges",   "special",     "prefix_ids",
                                          "suffix_ids",    "text_rules", "model_bytes", "chat_format"};
        for (const auto& [key, value] : root_.items()) {
            if (std::find(std::begin(kKnown), std::end(kKnown), key) == std::end(kKnown)) {
                throw FormatError("{}: unknown field \"{}\"", name, key);
            }
        }
    }

    const json& at(const char* key) const {
        const auto found = root_.find(key);
        if (found == root_.end()) throw FormatError("{}: the field \"{}\" is missing", name_, key);
        return *found;
    }
    std::string text(const json& value, const char* key) const {
        if (!value.is_string()) bad(key, "a text");
        return value.get<std::string>();
    }
    std::string text(const char* key) const { return text(at(key), key); }
    int64_t number(const json& value, const char* key) const {
        if (!value.is_number_integer() || value > INT_MAX || value < INT_MIN) bad(key, "a 32-bit integer");
        return value.get<int64_t>();
    }
    int64_t number(const char* key) const { return number(at(key), key); }
    bool flag(const json& value, const char* key) const {
        if (!value.is_boolean()) bad(key, "true or false");
        return value.get<bool>();
    }
    bool flag(const char* key) const { return flag(at(key), key); }
    const json& list(const char* key) const {
        if (!at(key).is_array()) bad(key, "a list");
        return at(key);
    }
    [[noreturn]] void bad(const char* key, const char* expected) const {
        throw FormatError("{}: the field \"{}\" is not {}", name_, key, expected);
    }

  private:
    json root_;
    const std::string& name_;
};

void readDocument(ByteReader& reader, TokenizerFile& file) {
    const auto magic = reader.read<int32_t>("the trailer's magic number");
    if (magic != kTrailerMagic) {
        throw FormatError("{}: {} bytes behind the vocabulary are no trailer (magic number {:#x})", reader.fileName(),
                          reader.remaining() + 4, static_cast<uint32_t>(magic));
    }
    const auto length = readLength(reader.read<int32_t>("the JSON length"), "the JSON length", reader);
    const Document document(reader.text(static_cast<uint64_t>(length), "the JSON document"), reader.fileName());
    if (document.number("format") != 1) {
        throw FormatError("{}: description format {}, only 1 is known", reader.fileName(), document.number("format"));
    }
    const std::string kind = document.text("kind");
    if (kind != "bpe" && kind != "sentencepiece") {
        throw FormatError("{}: unknown kind \"{}\"", reader.fileName(), kind);
    }
    file.kind = kind == "bpe" ? TokenizerFile::Kind::Bpe : TokenizerFile::Kind::SentencePiece;
    const json& pattern = document.at("pattern");
    if (pattern.is_array()) {
        for (const json& part : pattern) file.patterns.push_back(document.text(part, "pattern"));
    } else if (std::string text = document.text("pattern"); !text.empty()) {
        file.patterns.push_back(std::move(text));
    }
    file.normalizer = document.text("normalizer");
    file.ignoreMerges = document.flag("ignore_merges");
    file.textRules = document.text("text_rules");
    file.chatFormat = document.text("chat_format");
    for (const json& id : document.list("prefix_ids")) {
        file.prefixIds.push_back(static_cast<int>(document.number(id, "prefix_ids")));
    }
    for (const json& id : document.list("suffix_ids")) {
        file.suffixIds.push_back(static_cast<int>(document.number(id, "suffix_ids")));
    }
    for (const json& token : document.list("special")) {
        if (!token.is_array() || token.size() != 3) document.bad("special", "a list of [id, text, special]");
        file.special.push_back({static_cast<int>(document.number(token[0], "special")),
                                document.text(token[1], "special"), document.flag(token[2], "special")});
    }
    const int64_t nMerges = document.number("n_merges");
    const int64_t modelBytes = document.number("model_bytes");
    if (nMerges < 0 || modelBytes < 0 ||
        static_cast<uint64_t>(nMerges) * 8 + static_cast<uint64_t>(modelBytes) != reader.remaining()) {
        throw FormatError("{}: {} merges and a model of {} bytes are announced, {} bytes follow", reader.fileName(),
                          nMerges, modelBytes, reader.remaining());
    }
    file.merges.reserve(static_cast<size_t>(nMerges));
    for (int64_t i = 0; i < nMerges; i++) {
        const auto left = reader.read<uint32_t>("a merge");
        file.merges.emplace_back(left, reader.read<uint32_t>("a merge"));
    }
    file.model = reader.text(static_cast<uint64_t>(modelBytes), "the sentencepiece model");
}

// --- distributed-llama's form ---------------------------------------------------------------------------------------

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

std::string guessChatFormat(std::string_view chatTemplate) {
    const auto has = [&](std::string_view part) { return chatTemplate.find(part) != std::string_view::npos; };
    if (has("[INST]")) return "llama2";
    if (has("<|start_header_id|>")) return "llama3";
    if (has("<|im_start|>")) return has("enable_thinking") ? "qwen3" : "chatml";
    return "";
}

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
    file.chatFormat = guessChatFormat(file.chatTemplate);
    if (byId) {
        const bool qwen =
            file.chatFormat == "chatml" || file.chatFormat == "qwen3" ||
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

// --- writing --------------------------------------------------------------------------------------------------------

class Writer {
  public:
    template <typename T>
    void put(T value) {
        bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
    }
    std::string bytes;
};

std::string describe(const TokenizerFile& file, const std::string& path) {
    nlohmann::ordered_json document;
    document["format"] = 1;
    document["kind"] = file.kind == TokenizerFile::Kind::Bpe ? "bpe" : "sentencepiece";
    if (file.patterns.size() > 1) {
        document["pattern"] = file.patterns;
    } else {
        document["pattern"] = file.patterns.empty() ? std::string() : file.patterns[0];
    }
    document["normalizer"] = file.normalizer;
    document["ignore_merges"] = file.ignoreMerges;
    document["n_merges"] = file.merges.size();
    document["model_bytes"] = file.model.size();
    document["special"] = json::array();
    for (const SpecialToken& token : file.special) {
        document["special"].push_back({token.id, token.text, token.special});
    }
    document["prefix_ids"] = file.prefixIds;
    document["suffix_ids"] = file.suffixIds;
    document["text_rules"] = file.textRules;
    document["chat_format"] = file.chatFormat;
    try {
        return document.dump();
    } catch (const json::exception& error) {
        throw FormatError("{}: the description cannot be written: {}", path, error.what());
    }
}

}  // namespace

TokenizerFile parseTokenizerFile(std::span<const std::byte> bytes, const std::string& name) {
    ByteReader reader(bytes, name);
    TokenizerFile file;
    const Header header = readHeader(reader, file);
    file.chatTemplate = reader.text(static_cast<uint64_t>(header.templateBytes), "the chat template");
    reader.bytes(static_cast<uint64_t>(header.chatStopBytes), "the chat stop");
    for (int32_t i = 0; i < header.eosCount; i++) file.eosIds.push_back(reader.read<int32_t>("an end token's id"));
    readVocabulary(reader, header.vocabSize, file);
    file.addBos = header.addBos < 0 ? file.bosId >= 0 : header.addBos != 0;
    if (reader.remaining() > 0) {
        readDocument(reader, file);
        checkFile(file, name);
    } else {
        if (file.bosId != -1) checkId(file.bosId, file.vocab.size(), "the BOS id", name);
        for (int id : file.eosIds) checkId(id, file.vocab.size(), "end token", name);
        guessDescription(file);
    }
    return file;
}

TokenizerFile readTokenizerFile(const std::string& path) {
    const MappedFile mapped(path);
    return parseTokenizerFile(mapped.bytes(), path);
}

void writeTokenizerFile(const std::string& path, const TokenizerFile& file) {
    checkFile(file, path);
    const auto maxLength = [](const std::vector<std::string>& texts) {
        size_t longest = 0;
        for (const std::string& text : texts) longest = std::max(longest, text.size());
        return static_cast<int32_t>(longest);
    };
    std::vector<std::pair<int32_t, int32_t>> pairs = {{kBosId, file.bosId},
                                                      {kVersion, 1},
                                                      {kVocabSize, static_cast<int32_t>(file.vocab.size())},
                                                      {kMaxTokenLength, maxLength(file.vocab)}};
    if (!file.chatTemplate.empty()) {
        pairs.emplace_back(kChatTemplate, static_cast<int32_t>(file.chatTemplate.size()));
    }
    pairs.emplace_back(kEosCount, static_cast<int32_t>(file.eosIds.size()));
    pairs.emplace_back(kAddBos, file.addBos ? 1 : 0);

    Writer writer;
    writer.put(kMagic);
    writer.put(static_cast<int32_t>(8 + 8 * pairs.size()));
    for (const auto& [key, value] : pairs) {
        writer.put(key);
        writer.put(value);
    }
    writer.bytes += file.chatTemplate;
    for (int id : file.eosIds) writer.put(static_cast<int32_t>(id));
    for (size_t id = 0; id < file.vocab.size(); id++) {
        writer.put(file.scores[id]);
        writer.put(static_cast<int32_t>(file.vocab[id].size()));
        writer.bytes += file.vocab[id];
    }
    if (file.kind != TokenizerFile::Kind::ScoredPieces) {
        const std::string document = describe(file, path);
        writer.put(kTrailerMagic);
        writer.put(static_cast<int32_t>(document.size()));
        writer.bytes += document;
        for (const auto& [left, right] : file.merges) {
            writer.put(left);
            writer.put(right);
        }
        writer.bytes += file.model;
    }
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(writer.bytes.data(), static_cast<std::streamsize>(writer.bytes.size()));
    out.close();
    if (!out) throw FormatError("{}: cannot be written: {}", path, std::strerror(errno));
}

}  // namespace dllama
