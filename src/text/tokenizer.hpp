#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/tokenizer-file.hpp"

namespace dllama {

/// Whether the texts of special tokens inside a text become those tokens. What a user typed is never parsed. Added
/// tokens that control nothing (special false, and no mark of turns, thoughts or tools) are found in any text.
enum class SpecialTokens { Never, Parse };

/// A part of a prompt.
struct TextSegment {
    std::string text;
    bool parseSpecial = false;  ///< written by the chat format, not by a user
    /// The tokenizer meets this part as a text of its own (ChatGLM3 encodes each message so, and sentencepiece puts a
    /// blank before each text). Otherwise neighbouring plain texts are encoded as one.
    bool separate = false;

    bool operator==(const TextSegment&) const = default;
};

/// Text to token ids and back, exactly as the model's publisher does it. Immutable: any number of threads may use one.
///
/// A text may hold any bytes: sequences that are not UTF-8 are read as U+FFFD, one for each longest faulty part, which
/// is what tiktoken, tokenizers and sentencepiece are given by Python programs that decode with errors="replace".
/// decode(encode(x)) is x for valid UTF-8, up to what the model's own rules change: NFC (Qwen), and the white space
/// and compatibility characters that ChatGLM-6B's sentencepiece normalises away.
class Tokenizer {
  public:
    /// Throws FormatError if the parts of the file do not fit together: a faulty pattern, a byte without a token, a
    /// damaged sentencepiece model.
    explicit Tokenizer(TokenizerFile file);
    ~Tokenizer();
    Tokenizer(Tokenizer&&) noexcept;

    /// The ids of `text`. With Parse the texts of special tokens become those tokens, at each place the longest. With
    /// addPrefix the file's prefix ids (or BOS, where it says so) go before and its suffix ids behind.
    /// Throws Error if a text exceeds the limits of the pattern matcher or 4 GiB.
    std::vector<int> encode(std::string_view text, SpecialTokens mode, bool addPrefix = false) const;

    /// The ids of a rendered prompt. No text of a user's part becomes a special token; plain text on both sides of a
    /// border between parts is encoded as one, as it is when the whole prompt is one string.
    std::vector<int> encode(std::span<const TextSegment> segments) const;

    /// The text of `ids` without special tokens (those with `special` true in the file); what is not UTF-8 at the end
    /// is U+FFFD. For a part of a text, as when tokens arrive one by one, use StreamDecoder.
    std::string decode(std::span<const int> ids) const;

    /// A token's bytes: not always whole characters. Empty for ids outside the vocabulary, which models padded to a
    /// round size can produce.
    std::string_view piece(int id) const;

    int vocabSize() const;
    /// The id of a special token's text.
    std::optional<int> specialId(std::string_view text) const;
    /// True for tokens that are not printed: markers, BOS, the end of a text, unused entries.
    bool isHidden(int id) const;
    /// True for every token of the special list and for hidden ones, printed or not: text on its two sides is apart.
    bool isSpecial(int id) const;
    bool isEos(int id) const;
    /// True if a text begins with a blank of the tokenizer's own (sentencepiece's dummy prefix).
    bool addsBlank() const;
    const TokenizerFile& file() const;

  private:
    struct Parts;
    std::unique_ptr<const Parts> parts_;
};

/// Text out of tokens that arrive one by one. It never gives half a character: bytes wait until the character is whole
/// or can no longer become one.
class StreamDecoder {
  public:
    /// textStart: the first token begins a text, so that the tokenizer's own blank before it is dropped; false where
    /// the tokens continue a text. keepSpecial: print special tokens as well. The tokenizer must outlive the decoder.
    explicit StreamDecoder(const Tokenizer& tokenizer, bool textStart = true, bool keepSpecial = false)
        : tokenizer_(tokenizer), atStart_(textStart), keepSpecial_(keepSpecial) {}

    /// Print the special tokens with these texts as well: marks that a reader of the answer needs to see.
    void keep(std::span<const std::string_view> marks);
    /// The text that is complete with this token; may be empty.
    std::string push(int id);
    /// What is left at the end: U+FFFD for the beginning of a character, else nothing.
    std::string flush();

  private:
    std::string take(bool all);

    const Tokenizer& tokenizer_;
    bool atStart_;
    bool keepSpecial_;
    std::vector<int> kept_;
    std::string pending_;
};

}  // namespace dllama
