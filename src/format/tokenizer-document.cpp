#include <algorithm>
#include <climits>

#include "base/json.hpp"
#include "format/tokenizer-parts.hpp"

namespace dllama::tokenizer_file {
namespace {

using nlohmann::json;

/// The JSON document with errors that name file and field.
class Document {
  public:
    Document(std::string_view text, const std::string& name) : name_(name) {
        root_ = parseJson(text);
        if (!root_.is_object()) throw FormatError("{}: the JSON document is damaged", name);
        constexpr const char* kKnown[] = {"format",
                                          "kind",
                                          "pattern",
                                          "normalizer",
                                          "ignore_merges",
                                          "n_merges",
                                          "special",
                                          "prefix_ids",
                                          "suffix_ids",
                                          "text_rules",
                                          "model_bytes",
                                          "chat_format",
                                          "chat_format_reason",
                                          "chat_format_compared"};
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
    bool has(const char* key) const { return root_.contains(key); }
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

}  // namespace

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
    if (document.has("chat_format_reason")) file.chatFormatReason = document.text("chat_format_reason");
    if (document.has("chat_format_compared")) file.chatFormatCompared = document.flag("chat_format_compared");
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
    if (!file.chatFormatReason.empty()) document["chat_format_reason"] = file.chatFormatReason;
    if (file.chatFormatCompared) document["chat_format_compared"] = true;
    try {
        return document.dump();
    } catch (const json::exception& error) {
        throw FormatError("{}: the description cannot be written: {}", path, error.what());
    }
}

}  // namespace dllama::tokenizer_file
