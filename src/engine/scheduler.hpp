#pragma once

#include <span>
#include <vector>

namespace dllama {

/// What the scheduler sees of a sequence.
struct Pending {
    /// Tokens that are not in the cache yet; 1 while an answer is being written.
    int nUncached = 0;
    /// At least this many of them must be computed in one step (a prefix that is seen in both directions).
    int indivisible = 0;
};

/// Tokens of each sequence to compute in the next step, at most maxTokens in all and maxSequences sequences with a
/// finished prompt (each needs a row of logits). Sequences that are writing come first, so that a long prompt never
/// stalls them; prompts follow in order, the last one cut where the step is full.
std::vector<int> schedule(std::span<const Pending> pending, int maxTokens, int maxSequences);

}  // namespace dllama
