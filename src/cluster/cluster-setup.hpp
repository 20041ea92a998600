#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "arch/architecture.hpp"
#include "cluster/collectives.hpp"
#include "model/decoder.hpp"
#include "net/tcp-communicator.hpp"
#include "net/wire-codec.hpp"
#include "parallel/shard-plan.hpp"

namespace dllama {

/// Numbers of nodes are below this.
constexpr int kMaxNodes = 64;

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
    /// How the ranks all-reduce, and by what name their devices find each other (DeviceCollectives).
    Collectives collectives = Collectives::Tcp;
    std::string rendezvous;
    /// Of each rank: its number in the greetings (0 is the root, the others by the order they are listed in) and where
    /// it listens (the root: nowhere). Ranks are the numbers of those who take part, without gaps.
    std::vector<int> numbers;
    std::vector<std::string> addresses;
};

/// The part of a setup that tells the model from others, but for the weights themselves. Equal for equal models.
std::string modelToJson(const ClusterSetup& setup);
std::string setupToJson(const ClusterSetup& setup);
/// Throws ProtocolError, naming `peer`, for a missing, unknown or impossible field.
ClusterSetup setupFromJson(const std::string& json, const std::string& peer);

/// How the embedding table is stored.
DType embeddingType(const ClusterSetup& setup);
/// The rank of the node with this number. Throws ProtocolError, naming `peer`, if it has none.
int rankOf(const ClusterSetup& setup, int number, const std::string& peer);

/// What a rank did since its cluster was ready.
struct NodeStatistics {
    double computeSeconds = 0.0;  // of its steps, without the collectives
    SyncStatistics sync;
};
std::string statisticsToJson(const NodeStatistics& statistics);
/// Nothing if the text is damaged.
std::optional<NodeStatistics> statisticsFromJson(std::string_view text);

}  // namespace dllama
