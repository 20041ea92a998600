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

/// One conversation: its tokens, how many of them are in the KV cache, and which blocks hold them.
struct Sequence {
    int id = 0;
    std::vector<int> tokens;
    int nCached = 0;
    std::vector<int> blocks;
    int maxPositions = 0;

    // The answer being written.
    bool running = false;
    int nPrompt = 0;
    StopRule stop;
    std::optional<Sampler> sampler;

    int nUncached() const { return static_cast<int>(tokens.size()) - nCached; }
};

}  // namespace dllama
