#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/grammar.hpp"
#include "text/tokenizer.hpp"

namespace dllama::grammar {

/// A set of token ids: bit i of word i / 32 is token i.
using TokenSet = std::vector<uint32_t>;

inline void addToken(std::span<uint32_t> set, int token) {
    set[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
}

/// The bytes of tokens as a tree, in depth-first order.
struct TokenTree {
    struct Node {
        int token = -1;      ///< that ends here; -1: none
        uint32_t next = 0;   ///< the first node behind all that begin with this one
        uint16_t depth = 0;  ///< bytes up to here
        uint8_t byte = 0;
    };
    std::vector<Node> nodes;
};

/// The ordinary tokens of a tokenizer (special tokens are left out), prepared for masks: as a tree, and sorted by the
/// classes of characters that grammars allow freely. Immutable.
class Vocabulary {
  public:
    explicit Vocabulary(const Tokenizer& tokenizer);

    int size() const { return size_; }
    const TokenTree& all() const { return all_; }
    /// Tokens that are 1 to `count` whole characters of the class.
    std::span<const uint32_t> plain(PlainClass plain, int count) const;
    /// The longest token of the class, in characters.
    int maxCount(PlainClass plain) const {
        return static_cast<int>(classes_[static_cast<size_t>(plain)].atMost.size());
    }
    /// The tokens that do not belong to the class.
    const TokenTree& others(PlainClass plain) const { return classes_[static_cast<size_t>(plain)].others; }
    /// Tokens with the same bytes as one that is in the trees: (that one, the other).
    std::span<const std::pair<int, int>> twins() const { return twins_; }
    /// The blank at the beginning of a text is the tokenizer's own.
    bool addsBlank() const { return addsBlank_; }

  private:
    struct Class {
        std::vector<TokenSet> atMost;  // [n]: tokens of at most n + 1 characters
        TokenTree others;
    };
    int size_;
    bool addsBlank_;
    TokenTree all_;
    std::array<Class, kPlainClasses> classes_;
    std::vector<std::pair<int, int>> twins_;
};

}  // namespace dllama::grammar
