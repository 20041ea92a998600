#pragma once

#include <optional>
#include <vector>

#include "engine/sampler.hpp"

namespace dllama {

/// When an answer ends.
struct StopRule {
    /// New tokens at most; negative: as far as the context goes.
    int maxTokens = -1;
    /// The answer ends at any of these.
    std::vector<int> stopTokens;
};

enum class Finish { None, StopToken, Length };

/// A text to continue.
struct Request {
    /// The whole conversation so far: what the prefix cache holds of it is not computed again.
    std::vector<int> tokens;
    SamplingParams sampling;
    StopRule stop;
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

    Phase phase = Phase::Prefill;
    bool started = false;  // computing of its tokens has begun with these blocks
    int nCached = 0;
    std::vector<int> blocks;

    int nUncached() const { return static_cast<int>(tokens.size()) - nCached; }
};

}  // namespace dllama
