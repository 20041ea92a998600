#include "parallel/shard-plan.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/errors.hpp"

namespace dllama {

namespace {

constexpr int kMaxRanks = 64;

/// Deals `n` equal pieces: each goes to the node that would be done with it first, since the slowest decides how long a
/// step takes. Where two would be done at once it is the later one's: the first, the root, also samples.
std::vector<int> deal(int n, const std::vector<NodeSpec>& nodes) {
    std::vector<int> counts(nodes.size(), 0);
    for (int piece = 0; piece < n; piece++) {
        size_t best = 0;
        const auto done = [&](size_t rank) { return (counts[rank] + 1) / nodes[rank].weight; };
        for (size_t rank = 1; rank < nodes.size(); rank++)
            if (done(rank) <= done(best)) best = rank;
        counts[best]++;
    }
    return counts;
}

/// Cuts [0, total) at multiples of `unit`, of which each node gets what it is dealt. The last cut is at `total`, which
/// need not be a multiple.
std::vector<Span> cut(int total, int unit, const std::vector<NodeSpec>& nodes) {
    std::vector<Span> spans;
    int begin = 0;
    for (const int units : deal((total + unit - 1) / unit, nodes)) {
        const int end = std::min(total, begin + units * unit);
        spans.push_back({begin, end});
        begin = end;
    }
    return spans;
}

/// Each rank gets as many experts as its speed asks for, so that memory is shared as the work is, whatever the use. The
/// most used expert first, each goes to the rank with room that would be done with its experts first.
std::vector<int> placeExperts(int nExperts, const std::vector<double>& use, const std::vector<NodeSpec>& nodes) {
    std::vector<int> order(nExperts);
    std::iota(order.begin(), order.end(), 0);
    const auto load = [&](int expert) { return use.empty() ? 1.0 : use[expert]; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return load(a) > load(b); });
    std::vector<int> room = deal(nExperts, nodes);
    std::vector<double> busy(nodes.size(), 0.0);
    std::vector<int> owners(nExperts);
    for (int expert : order) {
        int best = -1;
        const auto done = [&](int rank) { return (busy[rank] + load(expert)) / nodes[rank].weight; };
        for (int rank = 0; rank < static_cast<int>(nodes.size()); rank++)
            if (room[rank] > 0 && (best < 0 || done(rank) < done(best))) best = rank;
        room[best]--;
        busy[best] += load(expert);
        owners[expert] = best;
    }
    return owners;
}

}  // namespace

int cutUnit(const Architecture& arch, const std::function<DType(const std::string& tensor)>& typeOf) {
    int unit = kBlockValues;
    for (const TensorDecl& decl : declareTensors(arch))
        if (decl.isWeight) unit = std::lcm(unit, blockValues(typeOf(decl.name)));
    return unit;
}

ExpertPlacement choosePlacement(const Architecture& arch, const std::vector<NodeSpec>& nodes, int unit) {
    constexpr double kTolerated = 1.25;  // of the time if blocks could be divided: what the slowest may take
    const int units = arch.config.moeIntermediateSize / unit;
    const std::vector<int> counts = deal(units, nodes);
    double weights = 0.0, slowest = 0.0;
    for (size_t rank = 0; rank < nodes.size(); rank++) {
        weights += nodes[rank].weight;
        slowest = std::max(slowest, counts[rank] / nodes[rank].weight);
    }
    return slowest * weights > kTolerated * units ? ExpertPlacement::Whole : ExpertPlacement::Sliced;
}

ShardPlan makeShardPlan(const Architecture& arch, const std::vector<NodeSpec>& nodes, ExpertPlacement placement,
                        const ExpertUse& use, int unit) {
    DLLAMA_CHECK(unit > 0 && unit % kBlockValues == 0);
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
    const int headUnit = unit / std::gcd(unit, c.valueDim());
    const std::vector<Span> heads = cut(c.nHeads, headUnit, nodes);
    const std::vector<Span> ffn = cut(c.intermediateSize, unit, nodes);
    const std::vector<Span> experts = cut(c.moeIntermediateSize, unit, nodes);
    const std::vector<Span> shared = cut(c.nSharedExperts * c.moeIntermediateSize, unit, nodes);
    if (placement == ExpertPlacement::Whole && c.isMoe()) {
        if (!use.empty() && use.size() != static_cast<size_t>(c.nLayers))
            throw ConfigError("the recorded use of experts has {} layers, the model {}", use.size(), c.nLayers);
        for (int layer = 0; layer < c.nLayers; layer++) {
            const std::vector<double> ofLayer = use.empty() ? std::vector<double>{} : use[layer];
            if (!ofLayer.empty() && ofLayer.size() != static_cast<size_t>(c.nRoutedExperts))
                throw ConfigError("the recorded use of layer {} has {} experts, the model {}", layer, ofLayer.size(),
                                  c.nRoutedExperts);
            for (double times : ofLayer)
                if (!(times >= 0.0 && std::isfinite(times)))
                    throw ConfigError("the recorded use of layer {} has an expert that was chosen {} times", layer,
                                      times);
            plan.owners_.push_back(placeExperts(c.nRoutedExperts, ofLayer, nodes));
        }
    }
    const std::vector<Span> vocabulary = cut(c.vocabSize, kBlockValues, nodes);
    for (size_t rank = 0; rank < nodes.size(); rank++) {
        RankShare share{heads[rank], {}, ffn[rank], experts[rank], shared[rank], vocabulary[rank]};
        if (share.heads.size() > 0)
            share.kvHeads = {share.heads.begin / plan.group_, (share.heads.end - 1) / plan.group_ + 1};
        if (!plan.owners_.empty()) share.experts = {0, c.moeIntermediateSize};
        plan.shares_.push_back(share);
    }
    return plan;
}

std::optional<TensorSlice> ShardPlan::slice(const TensorDecl& tensor, int rank) const {
    const RankShare& share = shares_[rank];
    const int unit = tensor.cutUnit;
    const auto rows = [&](Span span) -> std::optional<TensorSlice> {
        if (span.size() == 0) return std::nullopt;
        // A vector lies along its columns.
        const int64_t begin = int64_t{span.begin} * unit, end = int64_t{span.end} * unit;
        if (!tensor.isWeight) return TensorSlice{tensor.name, 0, 1, begin, end};
        return TensorSlice{tensor.name, begin, end, 0, tensor.cols};
    };
    const auto columns = [&](Span span) -> std::optional<TensorSlice> {
        if (span.size() == 0) return std::nullopt;
        return TensorSlice{tensor.name, 0, tensor.rows, int64_t{span.begin} * unit, int64_t{span.end} * unit};
    };
    const Span inner = tensor.part == Part::RoutedExpert   ? share.experts
                       : tensor.part == Part::SharedExpert ? share.shared
                                                           : share.ffn;
    const TensorSlice whole{tensor.name, 0, tensor.rows, 0, tensor.cols};
    if (tensor.part == Part::RoutedExpert && !owners_.empty())
        return owners_[tensor.layer][tensor.expert] == rank ? std::optional(whole) : std::nullopt;
    switch (tensor.cut) {
        case Cut::Replicated:
            return whole;
        case Cut::WithHeads:
            return share.heads.size() > 0 ? std::optional(whole) : std::nullopt;
        case Cut::RootOnly:
            return rank == 0 ? std::optional(whole) : std::nullopt;
        case Cut::HeadSum:
            return firstWith(&RankShare::heads) == rank ? std::optional(whole) : std::nullopt;
        case Cut::FfnSum:
            return firstWith(&RankShare::ffn) == rank ? std::optional(whole) : std::nullopt;
        case Cut::QueryHeads:
            return rows(share.heads);
        case Cut::KvHeads:
            return rows(share.kvHeads);
        case Cut::HeadColumns:
            return columns(share.heads);
        case Cut::FfnRows:
            return rows(inner);
        case Cut::FfnColumns:
            return columns(inner);
        case Cut::Vocabulary:
            return rows(share.vocabulary);
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

uint64_t ShardPlan::hash() const {
    uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
    const auto add = [&](int value) {
        for (int shift = 0; shift < 32; shift += 8)
            hash = (hash ^ ((static_cast<uint32_t>(value) >> shift) & 0xff)) * 0x100000001b3;
    };
    add(headDim_);
    add(group_);
    for (const RankShare& share : shares_)
        for (const Span& span :
             {share.heads, share.kvHeads, share.ffn, share.experts, share.shared, share.vocabulary}) {
            add(span.begin);
            add(span.end);
        }
    for (const std::vector<int>& layer : owners_)
        for (int owner : layer) add(owner);
    return hash;
}

std::vector<TensorSlice> rankSlices(const Architecture& arch, const ShardPlan& plan, int rank) {
    std::vector<TensorSlice> slices;
    for (const TensorDecl& decl : computedTensors(arch)) {
        if (auto slice = plan.slice(decl, rank)) slices.push_back(std::move(*slice));
    }
    return slices;
}

}  // namespace dllama
