#pragma once

#include <string>
#include <vector>

#include "arch/architecture.hpp"
#include "format/tensor-source.hpp"
#include "model/decoder.hpp"
#include "net/batch-codec.hpp"
#include "net/wire-codec.hpp"
#include "parallel/shard-plan.hpp"

namespace dllama {

BatchLimits batchLimits(const Architecture& arch, const DecoderLimits& limits, DType embeddingType);

/// Throws ConfigError if a step of these limits needs a frame that is too long to be sent.
void checkFrames(const Architecture& arch, const ShardPlan& plan, const DecoderLimits& limits, DType embeddingType,
                 Wire wire);

/// Bytes that `rank` needs, part by part.
struct MemoryNeed {
    size_t weights = 0, kv = 0, buffers = 0;
    size_t total() const { return weights + kv + buffers; }
};
MemoryNeed memoryNeed(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source,
                      const DecoderLimits& limits);

/// A plan for these weights; a node that it does not fit into gets less and the others more, as far as they can. 0 in
/// `memory` means unlimited. Throws ConfigError with a table of what each node (called by `names`) needs and has.
ShardPlan planWithinMemory(const Architecture& arch, std::vector<NodeSpec>& nodes, ExpertPlacement placement,
                           const ExpertUse& use, const TensorSource& source, const DecoderLimits& limits,
                           const std::vector<uint64_t>& memory, const std::vector<std::string>& names);

}  // namespace dllama
