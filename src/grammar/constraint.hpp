#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/token-constraint.hpp"
#include "grammar/grammar.hpp"
#include "grammar/machine.hpp"
#include "grammar/vocabulary.hpp"

namespace dllama::grammar {

/// A finished grammar with what is known of its states and their masks. Shared by all answers that follow it, by any
/// number of threads.
class Automaton {
  public:
    Automaton(Grammar grammar, std::shared_ptr<const Vocabulary> vocabulary);

    /// A place in the automaton, kept by an answer.
    struct Position {
        std::shared_ptr<Machine> machine;
        int state = 0;
    };
    Position start();
    /// Sets exactly the bits of the tokens that may come next. textStart: the tokenizer drops a blank that the next
    /// token begins with. Of what would take too long to examine some is left out, but never all.
    void mask(Position& position, bool textStart, std::span<uint32_t> allowed);
    /// Goes on with a token that the mask allowed; anything else is an Error.
    void accept(Position& position, const Tokenizer& tokenizer, int token, bool textStart);
    /// Whether the text may end here, and whether it must.
    struct End {
        bool may, must;
    };
    End end(const Position& position);

  private:
    using Masks = std::unordered_map<int, TokenSet>;

    /// Replaces a machine that has grown too large, and moves the position to the present one.
    void settle(Position& position);
    void walk(const TokenTree& tree, int state, std::span<uint32_t> allowed);
    void walkSubtree(const TokenTree& tree, size_t first, size_t end, int state, std::span<uint32_t> allowed);
    void computeMask(int state, std::span<uint32_t> allowed);
    void computeStartMask(int state, std::span<uint32_t> allowed);
    void finishMask(int state, std::span<uint32_t> allowed);

    const Grammar grammar_;
    const std::shared_ptr<const Vocabulary> vocabulary_;
    std::mutex mutex_;
    std::shared_ptr<Machine> machine_;
    Masks masks_;  // of the machine's states
    std::vector<int> path_;
    uint64_t workLimit_ = 0;
};

/// One answer's way through an automaton.
class GrammarConstraint : public TokenConstraint {
  public:
    /// textStart: the answer's first token begins a text, as for StreamDecoder. The tokenizer must outlive this.
    GrammarConstraint(std::shared_ptr<Automaton> automaton, const Tokenizer& tokenizer, bool textStart = true);

    void mask(std::span<uint32_t> bits) override;
    /// Throws Error for a token that the mask does not allow.
    void accept(int token) override;
    bool mayEnd() const override;
    bool mustEnd() const override;

  private:
    std::shared_ptr<Automaton> automaton_;
    const Tokenizer& tokenizer_;
    Automaton::Position position_;
    bool textStart_;
};

}  // namespace dllama::grammar
