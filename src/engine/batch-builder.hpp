#pragma once

#include <span>
#include <vector>

#include "arch/architecture.hpp"
#include "backend/batch.hpp"
#include "model/embedding-table.hpp"

namespace dllama {

/// A run of a sequence's tokens that a step computes.
struct BatchPart {
    /// All tokens of the sequence.
    std::span<const int> tokens;
    /// Physical blocks of its KV cache.
    std::span<const int> blocks;
    /// tokens[begin, end) are computed; those before are in the cache.
    int begin = 0;
    int end = 0;
    /// Logits are wanted for the tokens from outputBegin on.
    int outputBegin = 0;
};

/// Length of the prefix that is seen in both directions and must be computed in one step: for architectures with a
/// prefix mask the tokens before <sop>, else 0. Throws ConfigError if such a prompt has no <sop>.
int prefixLength(const Architecture& arch, std::span<const int> tokens);

/// Makes the flat arrays of a step: positions, RoPE positions, what each token may see.
Batch buildBatch(const Architecture& arch, const EmbeddingTable& embeddings, std::span<const BatchPart> parts);

}  // namespace dllama
