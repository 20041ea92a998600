#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dllama {

/// Cuts a text into the pieces that byte-level BPE works on: each match of a pattern is a piece and so is what lies
/// between two matches. The patterns work in turn, each on the pieces of the one before, as Hugging Face's Sequence of
/// Splits does. Patterns are PCRE2 with Unicode properties; `\s` is read as White_Space, as in Rust and Oniguruma
/// (PCRE2's own `\s` also takes U+180E). Several threads may call split at once.
class PreTokenizer {
  public:
    /// Throws FormatError if a pattern does not compile.
    explicit PreTokenizer(const std::vector<std::string>& patterns);
    ~PreTokenizer();
    PreTokenizer(PreTokenizer&&) noexcept;

    /// The pieces of `text`, which must be valid UTF-8, in order; together they are the text.
    /// Throws Error if a pattern exceeds the matcher's limits on this text.
    std::vector<std::string_view> split(std::string_view text) const;

  private:
    struct Pattern;
    std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace dllama
