#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "arch/architecture.hpp"

/// The only place that divides a model among ranks. Loader, streamer, KV sizes, buffers and the printed memory report
/// all ask the plan.
namespace dllama {

/// A half-open range.
struct Span {
    int begin = 0;
    int end = 0;
    int size() const { return end - begin; }
    bool operator==(const Span&) const = default;
};

/// What one rank computes. A part may be empty.
struct RankShare {
    Span heads;       // query heads
    Span kvHeads;     // the KV heads that those read; neighbours may share one
    Span ffn;         // values of the dense FFN's inner dimension
    Span experts;     // values of every routed expert's inner dimension; whole placement: all of them
    Span shared;      // values of the shared experts' inner dimension
    Span vocabulary;  // rows of the output head
    bool operator==(const RankShare&) const = default;
};

struct NodeSpec {
    /// Relative speed: its share of the work.
    double weight = 1.0;
};

/// Routed experts are cut like any FFN, so that every rank works on every token; or each lies whole on one rank, which
/// makes longer rows but leaves ranks idle when a token's experts are elsewhere.
enum class ExpertPlacement { Sliced, Whole };

/// The values that inner dimensions are cut at: whole blocks of every weight's type, and of the activations that meet
/// them.
int cutUnit(const Architecture& arch, const std::function<DType(const std::string& tensor)>& typeOf);

/// Sliced where every node gets about what its weight asks for, whole where pieces of `unit` values divide too unevenly
/// for that.
ExpertPlacement choosePlacement(const Architecture& arch, const std::vector<NodeSpec>& nodes, int unit = kBlockValues);

/// How often each expert of each layer was chosen: (layer, expert). Empty: all alike.
using ExpertUse = std::vector<std::vector<double>>;

/// Immutable and equal on every rank.
class ShardPlan {
  public:
    int nRanks() const { return static_cast<int>(shares_.size()); }
    const RankShare& share(int rank) const { return shares_[rank]; }
    /// The part of a tensor that `rank` holds, or nothing.
    std::optional<TensorSlice> slice(const TensorDecl& tensor, int rank) const;
    /// For attention on this rank.
    AttentionShape attentionShape(int rank) const;
    /// Equal plans have equal hashes: ranks compare them before they work together.
    uint64_t hash() const;

  private:
    friend ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes,
                                   ExpertPlacement placement, const ExpertUse& use, int unit);
    /// The first rank whose part is not empty.
    int firstWith(Span RankShare::*part) const;

    std::vector<RankShare> shares_;
    std::vector<std::vector<int>> owners_;  // of each layer's experts; empty: sliced
    int headDim_ = 0;
    int group_ = 1;
};

/// 1 to 64 nodes of any relative weights; rank r is node r. Cuts fall on whole heads and on multiples of `unit` values
/// (cutUnit), so a tiny model may leave a rank without work. Throws ConfigError for impossible nodes.
ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes,
                        ExpertPlacement placement = ExpertPlacement::Sliced, const ExpertUse& use = {},
                        int unit = kBlockValues);

/// Everything that `rank` computes with, in the model's order: what a worker must be sent. The embedding table is not
/// among it, unless it is the output head too.
std::vector<TensorSlice> rankSlices(const Architecture& arch, const ShardPlan& plan, int rank);

}  // namespace dllama
