#pragma once

#include <cstdint>
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
    Span experts;     // values of every routed expert's inner dimension (sliced placement)
    Span shared;      // values of the shared experts' inner dimension
    Span vocabulary;  // rows of the output head
    bool operator==(const RankShare&) const = default;
};

struct NodeSpec {
    /// Relative speed: its share of the work.
    double weight = 1.0;
};

/// Immutable and equal on every rank.
class ShardPlan {
  public:
    int nRanks() const { return static_cast<int>(shares_.size()); }
    const RankShare& share(int rank) const { return shares_[rank]; }
    /// The part of a tensor that `rank` holds, or nothing.
    std::optional<TensorSlice> slice(const TensorDecl& tensor, int rank) const;
    /// For attention on this rank.
    AttentionShape attentionShape(int rank) const;

  private:
    friend ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes);
    /// The first rank whose part is not empty.
    int firstWith(Span RankShare::*part) const;

    std::vector<RankShare> shares_;
    int headDim_ = 0;
    int group_ = 1;
};

/// 1 to 64 nodes of any relative weights; rank r is node r. Cuts fall on whole heads and on multiples of 32 values, so
/// a tiny model may leave a rank without work. Throws ConfigError for impossible nodes.
ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes);

}  // namespace dllama
