#pragma once

#include <span>
#include <string>
#include <vector>

#include "backend/batch.hpp"

namespace dllama {

/// What a batch may contain: a worker trusts no index that it has not checked.
struct BatchLimits {
    int maxTokens = 0;
    int maxOutputs = 0;
    int nKvBlocks = 0;
    int maxPositions = 0;
    int ropeParts = 1;
    int dim = 0;
    DType embeddingType = DType::F32;
    /// The largest encoded batch.
    size_t maxBytes() const;
};

/// A batch as bytes: eight i32 (tokens, sequences, blocks a sequence, outputs, values of ropePositions, bytes of
/// embeddings, top logits wanted, 1 for microbatches), then the arrays of Batch in their order.
void encodeBatch(const Batch& batch, std::vector<std::byte>& out);

/// Throws ProtocolError, naming `peer`, for a batch that is damaged or beyond the limits.
void decodeBatch(std::span<const std::byte> bytes, const BatchLimits& limits, const std::string& peer, Batch& batch);

}  // namespace dllama
