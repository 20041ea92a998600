#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "arch/architecture.hpp"
#include "cluster/collectives.hpp"
#include "format/model-file.hpp"
#include "model/decoder.hpp"
#include "net/batch-codec.hpp"
#include "net/handshake.hpp"
#include "net/tcp-communicator.hpp"
#include "net/wire-codec.hpp"
#include "parallel/shard-plan.hpp"

namespace dllama {

/// All that a worker must know to be one rank of a model: it computes architecture, plan and slices from it, as the
/// root does.
struct ClusterSetup {
    ModelConfig config;
    uint64_t modelId = 0;
    DType weightType = DType::F32;
    /// Tensors that are stored in another type than their kind.
    std::unordered_map<std::string, DType> exceptions;
    /// Of a weight.
    DType typeOf(const std::string& tensor) const;
    std::vector<NodeSpec> nodes;
    ExpertPlacement placement = ExpertPlacement::Sliced;
    ExpertUse expertUse;
    uint64_t planHash = 0;
    DecoderLimits limits;
    Wire wire = Wire::Q80;
    /// How the ranks add up, and by what name they find each other (DeviceCollectives).
    Collectives collectives = Collectives::Tcp;
    std::string rendezvous;
    /// Of each rank: its number in the greetings (0 is the root, the others by the order they are listed in) and where
    /// it listens (the root: nowhere). Ranks are the numbers of those who take part, without gaps.
    std::vector<int> numbers;
    std::vector<std::string> addresses;
};

std::string setupToJson(const ClusterSetup& setup);
/// Throws ProtocolError, naming `peer`, for a missing, unknown or impossible field.
ClusterSetup setupFromJson(const std::string& json, const std::string& peer);

/// Names a model's weights. distributed-llama's own files carry no hashes: theirs is made of a sample of each tensor.
uint64_t weightsId(const ModelFile& file);

/// The parts of the setup that come from the file.
void describeModel(const ModelFile& file, const Architecture& arch, ClusterSetup& setup);

/// What a rank did since its cluster was ready.
struct NodeStatistics {
    double computeSeconds = 0.0;  // of its steps, without the collectives
    SyncStatistics sync;
};
std::string statisticsToJson(const NodeStatistics& statistics);
/// Nothing if the text is damaged.
std::optional<NodeStatistics> statisticsFromJson(std::string_view text);

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
