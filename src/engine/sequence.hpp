#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/sampler.hpp"
#include "engine/token-constraint.hpp"

namespace dllama {

/// When an answer ends.
struct StopRule {
    /// New tokens at most; negative: as far as the context goes.
    int maxTokens = -1;
    /// The answer ends at any of these.
    std::vector<int> stopTokens = {};
    /// None of them comes before so many new tokens.
    int minTokens = 0;
};

/// Complete: the request's constraint lets nothing follow.
enum class Finish { None, StopToken, Length, Complete };

/// A text to continue.
struct Request {
    /// The whole conversation so far: what the prefix cache holds of it is not computed again.
    std::vector<int> tokens;
    SamplingParams sampling;
    StopRule stop;
    /// What its tokens may be; may be null.
    std::shared_ptr<TokenConstraint> constraint = nullptr;
    /// Log probabilities are wanted, and of so many of the most likely tokens beside each; negative: none.
    int nLogprobs = -1;
};

/// A request being answered: its tokens, how many of them are in the KV cache, and which blocks hold them.
struct Sequence {
    /// Prefill until all tokens have been computed once and the next one has been drawn; again after preemption or a
    /// lost rank.
    enum class Phase { Prefill, Decode };

    std::vector<int> tokens;
    int nPrompt = 0;
    int nCachedPrompt = 0;  // tokens of the prompt that were in the prefix cache
    StopRule stop;
    std::optional<Sampler> sampler;
    std::shared_ptr<TokenConstraint> constraint;
    int nLogprobs = -1;

    Phase phase = Phase::Prefill;
    bool started = false;  // computing of its tokens has begun with these blocks
    int nCached = 0;
    std::vector<int> blocks;

    int nUncached() const { return static_cast<int>(tokens.size()) - nCached; }
    /// Not every token may come next.
    bool isMasked() const {
        return (constraint && constraint->constrains()) || static_cast<int>(tokens.size()) - nPrompt < stop.minTokens;
    }
    /// How many of the best logits decide its next token, or may; 0: the whole row is needed.
    int topNeeded() const { return nLogprobs >= 0 ? 0 : Sampler::topNeeded(sampler->params(), isMasked()); }
};

}  // namespace dllama
