#include "format/tokenizer-file.hpp"

#include <climits>

#include "base/byte-reader.hpp"
#include "base/mapped-file.hpp"
#include "format/tokenizer-parts.hpp"

namespace dllama {
namespace tokenizer_file {
namespace {

constexpr int32_t kOldMagic = 0x567123;
constexpr int32_t kMaxHeaderPairs = 64;

struct Header {
    int32_t version = -1;
    int32_t vocabSize = 0;
    int32_t templateBytes = 0;
    int32_t chatStopBytes = 0;
    int32_t eosCount = 0;
    int32_t addBos = -1;  // -1: the key is absent
};

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

}  // namespace

int32_t readLength(int32_t value, const char* what, const ByteReader& reader) {
    if (value < 0 || static_cast<uint32_t>(value) > reader.size()) {
        throw FormatError("{}: {} is {}, the file has {} bytes", reader.fileName(), what, value, reader.size());
    }
    return value;
}

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

}  // namespace tokenizer_file

TokenizerFile parseTokenizerFile(std::span<const std::byte> bytes, const std::string& name) {
    using namespace tokenizer_file;
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

}  // namespace dllama
