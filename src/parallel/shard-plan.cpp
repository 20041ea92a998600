#include "parallel/shard-plan.hpp"

#include <cmath>
#include <numeric>

#include "base/errors.hpp"

namespace dllama {

namespace {

constexpr int kMaxRanks = 64;

/// Cuts [0, total) at multiples of `unit` in proportion to the nodes' weights. The last cut is at `total`, which need
/// not be a multiple.
std::vector<Span> cut(int total, int unit, const std::vector<NodeSpec>& nodes) {
    const int units = (total + unit - 1) / unit;
    double sum = 0.0;
    for (const NodeSpec& node : nodes) sum += node.weight;
    std::vector<Span> spans;
    double passed = 0.0;
    int begin = 0;
    for (const NodeSpec& node : nodes) {
        passed += node.weight;
        const int end = std::min(total, unit * static_cast<int>(std::lround(passed / sum * units)));
        spans.push_back({begin, end});
        begin = end;
    }
    return spans;
}

}  // namespace

ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes) {
    if (nodes.empty() || nodes.size() > kMaxRanks)
        throw ConfigError("a cluster of {} nodes: must be 1 to {}", nodes.size(), kMaxRanks);
    for (const NodeSpec& node : nodes)
        if (!(node.weight > 0.0 && std::isfinite(node.weight)))
            throw ConfigError("node weight {}: must be above 0", node.weight);

    const ModelConfig& c = arch.config;
    ShardPlan plan;
    plan.headDim_ = c.headDim;
    plan.group_ = c.nHeads / c.nKvHeads;
    // The columns of the attention output follow the heads and must fall on whole blocks.
    const int headUnit = kBlockValues / std::gcd(kBlockValues, c.headDim);
    const std::vector<Span> heads = cut(c.nHeads, headUnit, nodes);
    const std::vector<Span> ffn = cut(c.intermediateSize, kBlockValues, nodes);
    const std::vector<Span> experts = cut(c.moeIntermediateSize, kBlockValues, nodes);
    const std::vector<Span> shared = cut(c.nSharedExperts * c.moeIntermediateSize, kBlockValues, nodes);
    const std::vector<Span> vocabulary = cut(c.vocabSize, kBlockValues, nodes);
    for (size_t rank = 0; rank < nodes.size(); rank++) {
        RankShare share{heads[rank], {}, ffn[rank], experts[rank], shared[rank], vocabulary[rank]};
        if (share.heads.size() > 0)
            share.kvHeads = {share.heads.begin / plan.group_, (share.heads.end - 1) / plan.group_ + 1};
        plan.shares_.push_back(share);
    }
    return plan;
}

std::optional<TensorSlice> ShardPlan::slice(const TensorDecl& tensor, int rank) const {
    const RankShare& share = shares_[rank];
    const auto rows = [&](Span span, int scale) -> std::optional<TensorSlice> {
        if (span.size() == 0) return std::nullopt;
        // A vector lies along its columns.
        const int64_t begin = int64_t{span.begin} * scale, end = int64_t{span.end} * scale;
        if (!tensor.isWeight) return TensorSlice{tensor.name, 0, 1, begin, end};
        return TensorSlice{tensor.name, begin, end, 0, tensor.cols};
    };
    const auto columns = [&](Span span, int scale) -> std::optional<TensorSlice> {
        if (span.size() == 0) return std::nullopt;
        return TensorSlice{tensor.name, 0, tensor.rows, int64_t{span.begin} * scale, int64_t{span.end} * scale};
    };
    const bool sharedExpert = tensor.name.find(".moe.shared.") != std::string::npos;
    const Span inner = tensor.expert >= 0 ? share.experts : sharedExpert ? share.shared : share.ffn;
    const TensorSlice whole{tensor.name, 0, tensor.rows, 0, tensor.cols};
    switch (tensor.cut) {
        case Cut::Replicated:
            return whole;
        case Cut::RootOnly:
            return rank == 0 ? std::optional(whole) : std::nullopt;
        case Cut::HeadSum:
            return firstWith(&RankShare::heads) == rank ? std::optional(whole) : std::nullopt;
        case Cut::FfnSum:
            return firstWith(&RankShare::ffn) == rank ? std::optional(whole) : std::nullopt;
        case Cut::QueryHeads:
            return rows(share.heads, headDim_);
        case Cut::KvHeads:
            return rows(share.kvHeads, headDim_);
        case Cut::HeadColumns:
            return columns(share.heads, headDim_);
        case Cut::FfnRows:
            return rows(inner, 1);
        case Cut::FfnColumns:
            return columns(inner, 1);
        case Cut::Vocabulary:
            return rows(share.vocabulary, 1);
    }
    return std::nullopt;
}

int ShardPlan::firstWith(Span RankShare::*part) const {
    for (int rank = 0; rank < nRanks(); rank++)
        if ((shares_[rank].*part).size() > 0) return rank;
    return -1;
}

AttentionShape ShardPlan::attentionShape(int rank) const {
    const RankShare& share = shares_[rank];
    return {share.heads.size(), share.kvHeads.size(), headDim_, group_,
            share.heads.begin - share.kvHeads.begin * group_};
}

}  // namespace dllama
