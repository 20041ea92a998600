#include "text-reference.hpp"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <unordered_map>

#include "sentencepiece-sample.hpp"

namespace dllama::test {
namespace {

using nlohmann::ordered_json;
using Path = std::filesystem::path;

// Published: GLM-4 tokenization_chatglm.py and Llama 3 tokenizer.py (the same), Qwen2 tokenization_qwen2.py.
const char* const kDigitsInThrees =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* const kSingleDigits =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string fromBase64(const std::string& text) {
    const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string bytes;
    unsigned bits = 0;
    int nBits = 0;
    for (char c : text) {
        if (c == '=') break;
        bits = bits << 6 | static_cast<unsigned>(alphabet.find(c));
        nBits += 6;
        if (nBits >= 8) {
            nBits -= 8;
            bytes += static_cast<char>(bits >> nBits & 0xFF);
        }
    }
    return bytes;
}

/// Names the ids up to `id` that have no token: a special token lies far behind the others, and the tokenizers of
/// tests/data lack what their encodings do not use.
void nameUnused(TokenizerFile& file, size_t id) {
    while (file.vocab.size() < id) file.vocab.push_back(fmt::format("<|unused_{}|>", file.vocab.size()));
}

void readTiktoken(const Path& path, TokenizerFile& file) {
    std::ifstream in(path);
    for (std::string text; in >> text;) {
        size_t id = 0;
        in >> id;
        if (id < file.vocab.size()) throw std::runtime_error("ids out of order in " + path.string());
        nameUnused(file, id);
        file.vocab.push_back(fromBase64(text));
    }
    file.kind = TokenizerFile::Kind::Bpe;
    file.patterns = {kDigitsInThrees};
}

/// GPT-2 writes the bytes of a token as printable characters: itself, or U+0100 and up for the others in order.
std::string fromPrintable(const std::string& text) {
    static const std::unordered_map<int, char> byteOf = [] {
        std::unordered_map<int, char> map;
        int next = 256;
        for (int byte = 0; byte < 256; byte++) {
            const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
            map[printable ? byte : next++] = static_cast<char>(byte);
        }
        return map;
    }();
    std::string bytes;
    for (size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        const bool two = first >= 0xC0;
        bytes += byteOf.at(two ? (first & 0x1F) << 6 | (text[i + 1] & 0x3F) : first);
        i += two ? 2 : 1;
    }
    return bytes;
}

void readGpt2(const Path& folder, TokenizerFile& file) {
    const auto vocab = nlohmann::json::parse(readText(folder / "vocab.json"));
    std::unordered_map<std::string, uint32_t> idOf;
    for (const auto& [token, id] : vocab.items()) {
        nameUnused(file, id.get<size_t>() + 1);
        file.vocab[id.get<size_t>()] = fromPrintable(token);
        idOf[token] = id.get<uint32_t>();
    }
    std::ifstream in(folder / "merges.txt");
    for (std::string line; std::getline(in, line);) {
        const size_t blank = line.find(' ');
        if (line.starts_with("#version") || blank == std::string::npos) continue;
        file.merges.emplace_back(idOf.at(line.substr(0, blank)), idOf.at(line.substr(blank + 1)));
    }
    file.kind = TokenizerFile::Kind::Bpe;
    file.patterns = {kSingleDigits};
    file.normalizer = "nfc";
}

uint64_t readVarint(const std::string& bytes, size_t& at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const auto byte = static_cast<unsigned char>(bytes.at(at++));
        value |= static_cast<uint64_t>(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
}

/// The number in field 200 of a piece, if it has one.
std::optional<uint64_t> ownId(const std::string& piece) {
    for (size_t at = 0; at < piece.size();) {
        const uint64_t key = readVarint(piece, at);
        if (key == 200 << 3) return readVarint(piece, at);
        switch (key & 7) {
            case 0:
                readVarint(piece, at);
                break;
            case 2:
                at += readVarint(piece, at);
                break;
            default:
                at += 4;
        }
    }
    return std::nullopt;
}

/// A model of tests/data lacks pieces and says of the others which id they have (field 200 of the piece, reduce.py):
/// between them go unused pieces. A whole model comes back as it is.
std::string withAllIds(const std::string& model) {
    std::string whole;
    size_t nPieces = 0;
    for (size_t at = 0; at < model.size();) {
        const size_t start = at;
        const uint64_t key = readVarint(model, at);
        const size_t size = readVarint(model, at);
        const std::string field = model.substr(at, size);
        at += size;
        if (key == (1 << 3 | 2)) {
            const uint64_t id = ownId(field).value_or(nPieces);
            for (; nPieces < id; nPieces++) whole += protoPiece(fmt::format("<|unused_{}|>", nPieces), 0, 5);
            nPieces++;
        }
        whole += model.substr(start, at - start);
    }
    return whole;
}

void readSentencePiece(const Path& path, TokenizerFile& file) {
    file.kind = TokenizerFile::Kind::SentencePiece;
    file.model = withAllIds(readText(path));
    sentencepiece::SentencePieceProcessor processor;
    if (!processor.LoadFromSerializedProto(file.model).ok()) throw std::runtime_error("cannot read " + path.string());
    for (int id = 0; id < processor.GetPieceSize(); id++) {
        std::string text = processor.IdToPiece(id);
        if (processor.IsByte(id)) text = std::string(1, static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16)));
        for (size_t at; (at = text.find("\xE2\x96\x81")) != std::string::npos;) text.replace(at, 3, 1, ' ');
        file.vocab.push_back(text);
    }
}

/// Adds special tokens, with names for the ids between that have none.
void addSpecial(TokenizerFile& file, int id, const std::string& text, bool special) {
    nameUnused(file, static_cast<size_t>(id) + 1);
    file.vocab[static_cast<size_t>(id)] = text;
    file.special.push_back({id, text, special});
}

void addFromConfig(const Path& path, TokenizerFile& file) {
    const auto config = ordered_json::parse(readText(path));
    for (const auto& [id, token] : config.at("added_tokens_decoder").items()) {
        addSpecial(file, std::stoi(id), token.at("content"), token.at("special"));
    }
}

int idOf(const TokenizerFile& file, const std::string& text) {
    for (const SpecialToken& token : file.special) {
        if (token.text == text) return token.id;
    }
    throw std::runtime_error("no special token " + text);
}

}  // namespace

std::string readText(const Path& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw std::runtime_error("cannot read " + path.string());
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

std::optional<Path> sharedFolder() {
    const char* named = std::getenv("DLLAMA_SHARED");
    const Path path = named ? Path(named) : Path(DLLAMA_TEST_DATA) / "../../../shared";
    if (std::filesystem::is_directory(path)) return path;
    return std::nullopt;
}

TokenizerFile referenceTokenizer(const Path& tokenizers, const std::string& name) {
    const Path folder = tokenizers / name;
    TokenizerFile file;
    if (name == "glm-4-9b-chat") {
        readTiktoken(folder / "tokenizer.model", file);
        addFromConfig(folder / "tokenizer_config.json", file);
        file.prefixIds = {idOf(file, "[gMASK]"), idOf(file, "<sop>")};
        file.eosIds = {idOf(file, "<|endoftext|>"), idOf(file, "<|user|>"), idOf(file, "<|observation|>")};
        file.chatFormat = "glm-4-9b-chat";
    } else if (name == "glm-4.5") {
        readTiktoken(tokenizers / "glm-4-9b-chat/tokenizer.model", file);
        const auto added = ordered_json::parse(readText(folder / "added_tokens.json"));
        for (const auto& [text, id] : added.at("tokens").items()) {
            addSpecial(file, id.get<int>(), text, text.starts_with("<|") || text.starts_with("["));
        }
        file.eosIds = {idOf(file, "<|endoftext|>"), idOf(file, "<|user|>"), idOf(file, "<|observation|>")};
        file.chatFormat = "glm-4.5";
    } else if (name == "llama3") {
        readTiktoken(folder / "tokenizer.model", file);
        file.ignoreMerges = true;
        addFromConfig(folder / "tokenizer_config.json", file);
        file.bosId = idOf(file, "<|begin_of_text|>");
        file.addBos = true;
        file.eosIds = {idOf(file, "<|end_of_text|>"), idOf(file, "<|eot_id|>")};
        file.chatFormat = "llama3";
    } else if (name == "qwen2") {
        readGpt2(folder, file);
        addFromConfig(folder / "tokenizer_config.json", file);
        file.eosIds = {idOf(file, "<|im_end|>"), idOf(file, "<|endoftext|>")};
        file.chatFormat = "chatml";
    } else if (name == "llama2") {
        readSentencePiece(folder / "tokenizer.model", file);
        file.special = {{0, "<unk>", true}, {1, "<s>", true}, {2, "</s>", true}};
        file.bosId = 1;
        file.addBos = true;
        file.eosIds = {2};
        file.chatFormat = "llama2";
    } else if (name == "chatglm3-6b") {
        readSentencePiece(folder / "tokenizer.model", file);
        file.special = {{0, "<unk>", true}, {1, "<s>", true}, {2, "</s>", true}};
        const char* added[] = {"[MASK]",   "[gMASK]",       "[sMASK]",        "sop", "eop", "<|system|>",
                               "<|user|>", "<|assistant|>", "<|observation|>"};
        for (const char* text : added) addSpecial(file, static_cast<int>(file.vocab.size()), text, true);
        file.prefixIds = {idOf(file, "[gMASK]"), idOf(file, "sop")};
        file.eosIds = {2, idOf(file, "<|user|>"), idOf(file, "<|observation|>")};
        file.chatFormat = "chatglm3";
    } else if (name == "chatglm-6b") {
        readSentencePiece(folder / "ice_text.model", file);
        // The specials are pieces of the model itself.
        const char* own[] = {"[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"};
        for (size_t id = 0; id < file.vocab.size(); id++) {
            for (const char* text : own) {
                if (file.vocab[id] == text) file.special.push_back({static_cast<int>(id), text, true});
            }
        }
        file.suffixIds = {idOf(file, "[gMASK]"), idOf(file, "<sop>")};
        file.eosIds = {idOf(file, "<eop>")};
        file.textRules = "chatglm-6b";
        file.chatFormat = "chatglm";
    } else {
        throw std::runtime_error("no reference tokenizer " + name);
    }
    file.scores.resize(file.vocab.size());
    for (size_t id = 0; id < file.vocab.size(); id++) file.scores[id] = -static_cast<float>(id);
    return file;
}

std::vector<std::pair<std::string, std::vector<int>>> readEncodings(const Path& path) {
    return ordered_json::parse(readText(path)).get<std::vector<std::pair<std::string, std::vector<int>>>>();
}

}  // namespace dllama::test
