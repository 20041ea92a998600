#pragma once

#include <limits>
#include <span>
#include <vector>

namespace dllama {

/// What the scheduler sees of a sequence.
struct Pending {
    /// Tokens that are not in the cache yet. One while decoding, more with drafted tokens.
    int nUncached = 0;
    /// At least this many of them must be computed in one step (a prefix that is seen in both directions).
    int indivisible = 0;
    /// All tokens before these were computed and gave this one: it goes before prompts.
    bool decoding = false;
    /// A prompt of which a part has been computed.
    bool started = false;
    /// Positions in the cache, and blocks that the sequence holds.
    int nCached = 0;
    int nBlocks = 0;
    /// Of those, the ones that no other sequence holds.
    int nOwnBlocks = 0;
};

/// What one step may use at most.
struct Budget {
    int maxTokens = 0;
    int maxOutputs = 0;  // sequences that get a token
    int nFreeBlocks = 0;
    /// Of maxTokens, so many for prompts while something decodes: a longer step would stall running answers. A prefix
    /// that must be computed in one step is not held back by it.
    int maxPrefillBesideDecode = std::numeric_limits<int>::max();
};

struct Schedule {
    /// Tokens of each sequence to compute in the next step.
    std::vector<int> counts;
    /// Sequences that must give their blocks up for it: their tokens stay and are computed again later. If they shared
    /// blocks more may be free than was counted on: where no sequence has a count, schedule again without their blocks.
    std::vector<int> preempted;
};

/// `pending` is in the order of arrival. Sequences that decode come first, so that a long prompt never stalls them;
/// prompts follow in order, the last one cut where the step is full. Where the KV cache is full, the latest arrivals
/// are preempted: for a decoding sequence, or for the oldest one if nothing else could go on. A prompt begins only when
/// its blocks are free, so that prompts do not take them from each other, and when all that came before it have begun:
/// a stream of short ones does not keep a long one waiting for ever.
Schedule schedule(std::span<const Pending> pending, const Budget& budget);

}  // namespace dllama
