#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dllama {

/// A token that no merge makes: a marker of the chat format, the end of a text, a tag.
struct SpecialToken {
    int id = 0;
    std::string text;
    bool special = true;  ///< false: printed in answers, as `<think>` is

    bool operator==(const SpecialToken&) const = default;
};

/// What a `.t` file says (docs/file-format.md). A plain value: src/text/tokenizer.hpp gives it life.
struct TokenizerFile {
    enum class Kind {
        Bpe,            ///< byte-level: pieces cut by `patterns`, bytes merged by rank
        SentencePiece,  ///< the library with the model in `model`
        ScoredPieces,   ///< a distributed-llama file of a sentencepiece model: pairs merge by the score of the whole
    };

    Kind kind = Kind::Bpe;
    std::vector<std::string> vocab;  ///< bytes of each token, never empty
    std::vector<float> scores;       ///< as many as vocab; only ScoredPieces uses them
    std::string chatTemplate;        ///< Jinja text of the checkpoint, may be empty
    int bosId = -1;                  ///< -1: none
    bool addBos = false;             ///< bosId goes before a text when special tokens are asked for
    std::vector<int> eosIds;

    std::vector<std::string> patterns;  ///< PCRE2, applied in turn
    std::string normalizer;             ///< "" or "nfc"
    bool ignoreMerges = false;
    std::vector<std::pair<uint32_t, uint32_t>> merges;  ///< ids, best first; empty: by id of the merged bytes
    std::vector<SpecialToken> special;
    std::vector<int> prefixIds;
    std::vector<int> suffixIds;
    std::string textRules;   ///< "" or "chatglm-6b"
    std::string chatFormat;  ///< "" or a name listed in docs/file-format.md
    /// Why there is no format although there is a template: how what the template writes differs from every format.
    std::string chatFormatReason;
    /// The converter rendered conversations with the template itself and found `chatFormat` to write the same.
    bool chatFormatCompared = false;
    std::string model;  ///< the sentencepiece model's bytes

    bool operator==(const TokenizerFile&) const = default;
};

/// Reads a `.t` file, ours or distributed-llama's. A file without the JSON part is understood by these rules:
/// - Key 4 (EOS_ID) and key 6 (CHAT_EOS_ID) add to the end-of-text ids. Without key 10 (ADD_BOS) a text begins with
///   BOS exactly when the file names one.
/// - If the score of every ordinary token is minus its id, the vocabulary is byte-level BPE. Its pattern is Qwen2's
/// when
///   the template or the vocabulary has `<|im_start|>`, else Llama 3's (cl100k's with digits in threes). Otherwise it
///   is a sentencepiece vocabulary: pairs of pieces merge by score and unknown characters fall back to bytes.
/// - In byte-level BPE the special tokens are those from the smaller of BOS and the end-of-text ids on, and the
///   `<|...|>` tokens right before them; else BOS and the end-of-text tokens.
/// - There is no chat format: src/text/chat-format.hpp tells it from the template's text.
/// Throws FormatError, one line that names the file and the reason.
TokenizerFile readTokenizerFile(const std::string& path);

/// The same from bytes; `name` stands for the path in messages. No allocation exceeds a small multiple of the bytes.
TokenizerFile parseTokenizerFile(std::span<const std::byte> bytes, const std::string& name);

/// Writes the described form (for ScoredPieces the distributed-llama form, which needs no more). Throws FormatError if
/// the file cannot be written, and if the values break the format's rules: an empty token, an id out of range.
void writeTokenizerFile(const std::string& path, const TokenizerFile& file);

}  // namespace dllama
