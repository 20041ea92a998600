// What must hold of every plan, for the shapes of real models: nothing is lost, nothing is computed twice, and no rank
// gets more than it can do or hold.

#include "parallel/shard-plan.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <unordered_map>

#include "base/errors.hpp"
#include "cluster/memory-plan.hpp"
#include "model/decoder.hpp"
#include "model/weights.hpp"
#include "tensor/blocks.hpp"
#include "tiny-model.hpp"

namespace dllama {

namespace {

struct Shape {
    int hidden, layers, heads, kvHeads, headDim, ffn, vocab;
};
struct MoeOp {
    int experts = 0, chosen = 0, shared = 0, width = 0, firstLayer = 0;
};

Architecture model(const std::string& family, const Shape& s, const MoeOp& m = {}) {
    ModelConfig c = test::tinyConfig("llama");
    c.architecture = family;
    c.hiddenSize = s.hidden;
    c.nLayers = s.layers;
    c.nHeads = s.heads;
    c.nKvHeads = s.kvHeads;
    c.headDim = c.rotaryDim = s.headDim;
    c.intermediateSize = s.ffn;
    c.vocabSize = s.vocab;
    c.attentionBias = family.starts_with("glm") || family == "chatglm";
    c.nRoutedExperts = m.experts;
    c.nExpertsPerToken = m.chosen;
    c.nSharedExperts = m.shared;
    c.moeIntermediateSize = m.width;
    c.firstMoeLayer = m.firstLayer;
    if (family == "chatglm") c.hiddenAct = "gelu_tanh";
    return makeArchitecture(c);
}

/// Every family, in real sizes. Layers of a kind are cut alike, so two of each kind stand for all.
std::vector<std::pair<std::string, Architecture>> models() {
    std::vector<std::pair<std::string, Architecture>> all = {
        {"ChatGLM-6B", model("chatglm", {4096, 2, 32, 32, 128, 16384, 130528})},
        {"ChatGLM3-6B", model("glm", {4096, 2, 32, 2, 128, 13696, 65024})},
        {"GLM-4-9B", model("glm4", {4096, 2, 32, 2, 128, 13696, 151552})},
        {"GLM-4-32B", model("glm4", {6144, 2, 48, 2, 128, 23040, 151552})},
        {"INTELLECT-3", model("glm4moe", {4096, 3, 96, 8, 128, 10944, 151552}, {128, 8, 1, 1408, 1})},
        {"GLM-4.5", model("glm4moe", {5120, 5, 96, 8, 128, 12288, 151552}, {160, 8, 1, 1536, 3})},
        {"Llama-2-7B", model("llama", {4096, 2, 32, 32, 128, 11008, 32000})},
        {"Llama-3.2-1B", model("llama", {2048, 2, 32, 8, 64, 8192, 128256})},
        {"Qwen3-0.6B", model("qwen3", {1024, 2, 16, 8, 128, 3072, 151936})},
        {"Qwen3-30B-A3B", model("qwen3moe", {2048, 2, 32, 4, 128, 6144, 151936}, {128, 8, 0, 768, 0})},
        // Heads narrower than a block, a vocabulary that is no multiple of one.
        {"narrow", model("llama", {96, 2, 12, 6, 24, 224, 1009})},
    };
    ModelConfig flash = model("glm4moe", {2048, 3, 20, 20, 256, 10240, 154880}, {64, 4, 1, 1536, 1}).config;
    flash.architecture = "glm4moelite";
    flash.attentionBias = false;
    flash.rotaryDim = 64;
    flash.qLoraRank = 768;
    flash.kvLoraRank = 512;
    flash.qkNopeHeadDim = 192;
    flash.vHeadDim = 256;
    all.emplace_back("GLM-4.7-Flash", makeArchitecture(flash));
    Architecture tied = model("glm", {2048, 2, 16, 4, 128, 6144, 59264});
    tied.config.tieEmbeddings = true;
    all.emplace_back("GLM-Edge-1.5B", tied);
    return all;
}

constexpr double kWeights[] = {1.0, 0.4, 2.5, 1.0, 0.1, 1.7, 3.0, 0.9, 1.1, 0.25, 1.0, 5.0, 0.75, 1.3, 0.6, 2.0};

std::vector<NodeSpec> evenNodes(int n) {
    return std::vector<NodeSpec>(n);
}

std::vector<NodeSpec> unevenNodes(int n) {
    std::vector<NodeSpec> nodes;
    for (int i = 0; i < n; i++) nodes.push_back({kWeights[i % std::size(kWeights)]});
    return nodes;
}

/// Calls body with every plan that is worth a look. Failures inside name the model, the nodes and the placement.
template <typename Body>
void forEachPlan(const Body& body) {
    std::vector<int> counts(16);
    std::iota(counts.begin(), counts.end(), 1);
    counts.push_back(64);
    for (const auto& [name, arch] : models())
        for (int n : counts)
            for (const bool even : {true, false})
                for (const auto placement : {ExpertPlacement::Sliced, ExpertPlacement::Whole}) {
                    if (placement == ExpertPlacement::Whole && !arch.config.isMoe()) continue;
                    SCOPED_TRACE(fmt::format("{}, {} {} nodes, experts {}", name, n, even ? "even" : "uneven",
                                             placement == ExpertPlacement::Whole ? "whole" : "sliced"));
                    const std::vector<NodeSpec> nodes = even ? evenNodes(n) : unevenNodes(n);
                    body(arch, nodes, makeShardPlan(arch, nodes, placement));
                    if (::testing::Test::HasFailure()) return;
                }
}

constexpr Span RankShare::*kParts[] = {&RankShare::heads, &RankShare::ffn, &RankShare::experts, &RankShare::shared,
                                       &RankShare::vocabulary};

/// How many of the pieces that a part is cut into a rank has. The last piece of a vocabulary may be a small one.
int units(const Architecture& arch, const ShardPlan& plan, int rank, Span RankShare::*part) {
    const int heads = kBlockValues / std::gcd(kBlockValues, arch.config.valueDim());
    const int unit = part == &RankShare::heads ? heads : kBlockValues;
    return ((plan.share(rank).*part).size() + unit - 1) / unit;
}

/// The weights of a model as Q40, without a byte of them.
class Shapes final : public TensorSource {
  public:
    explicit Shapes(const Architecture& arch) {
        for (const TensorDecl& d : declareTensors(arch))
            tensors_[d.name] = {d.name, d.isWeight ? DType::Q40 : DType::F32, d.rows, d.cols};
    }
    const TensorInfo& info(std::string_view name) const override { return tensors_.at(std::string(name)); }
    bool has(std::string_view name) const override { return tensors_.contains(std::string(name)); }
    std::span<const std::byte> read(const TensorSlice&, std::vector<std::byte>&) const override { return {}; }
    bool isMapped(const TensorSlice&) const override { return false; }
    void release(const TensorSlice&) const override {}

  private:
    std::unordered_map<std::string, TensorInfo> tensors_;
};

}  // namespace

TEST(ShardPlan, CutsFallOnWholeBlocksOfTheWidestType) {
    const Architecture arch = makeArchitecture(test::tinyConfig("glm4moe"));
    const Shapes shapes(arch);
    EXPECT_EQ(cutUnit(arch, [&](const std::string& tensor) { return shapes.info(tensor).dtype; }), 32);
    EXPECT_EQ(cutUnit(arch, [](const std::string&) { return DType::F32; }), kBlockValues);
    constexpr int kUnit = 64;  // of a type with longer blocks
    for (int n = 1; n <= 5; n++) {
        const ShardPlan plan = makeShardPlan(arch, evenNodes(n), ExpertPlacement::Sliced, {}, kUnit);
        for (const TensorDecl& tensor : declareTensors(arch)) {
            for (int rank = 0; tensor.isWeight && rank < n; rank++) {
                const auto slice = plan.slice(tensor, rank);
                if (!slice) continue;
                EXPECT_EQ(slice->colBegin % kUnit, 0) << tensor.name;
                EXPECT_TRUE(slice->colEnd % kUnit == 0 || slice->colEnd == tensor.cols) << tensor.name;
            }
        }
    }
}

TEST(ShardPlan, SlicesTileEveryTensor) {
    forEachPlan([](const Architecture& arch, const std::vector<NodeSpec>& nodes, const ShardPlan& plan) {
        const int n = static_cast<int>(nodes.size());
        ASSERT_EQ(plan.nRanks(), n);
        for (const TensorDecl& tensor : declareTensors(arch)) {
            int64_t rowEnd = 0, colEnd = 0, cells = 0;
            int holders = 0;
            for (int rank = 0; rank < n; rank++) {
                const auto slice = plan.slice(tensor, rank);
                if (!slice) continue;
                holders++;
                ASSERT_EQ(slice->name, tensor.name);
                ASSERT_GT(slice->rows(), 0) << tensor.name;
                ASSERT_GT(slice->cols(), 0) << tensor.name;
                ASSERT_LE(slice->rowEnd, tensor.rows) << tensor.name;
                ASSERT_LE(slice->colEnd, tensor.cols) << tensor.name;
                // A matrix is stored in blocks along its columns.
                if (tensor.isWeight) {
                    ASSERT_EQ(slice->colBegin % kBlockValues, 0) << tensor.name;
                    ASSERT_TRUE(slice->colEnd % kBlockValues == 0 || slice->colEnd == tensor.cols) << tensor.name;
                }
                const bool whole = slice->rows() == tensor.rows && slice->cols() == tensor.cols;
                // Where a part begins the one before it has ended; KV heads may be shared by neighbours.
                const bool byRows = slice->cols() == tensor.cols;
                const int64_t begin = byRows ? slice->rowBegin : slice->colBegin;
                const int64_t before = byRows ? rowEnd : colEnd;
                const int64_t shared = tensor.cut == Cut::KvHeads ? before - begin : 0;
                if (!whole) {
                    ASSERT_GE(shared, 0) << tensor.name;
                    ASSERT_EQ(begin + shared, before) << tensor.name;
                }
                rowEnd = slice->rowEnd;
                colEnd = slice->colEnd;
                cells += slice->rows() * slice->cols();
            }
            ASSERT_EQ(rowEnd, tensor.rows) << tensor.name;
            ASSERT_EQ(colEnd, tensor.cols) << tensor.name;
            const int64_t all = tensor.rows * tensor.cols;
            if (tensor.cut == Cut::Replicated) {
                ASSERT_EQ(holders, n) << tensor.name;
                ASSERT_EQ(cells, n * all) << tensor.name;
            } else if (tensor.cut == Cut::WithHeads) {
                int withHeads = 0;
                for (int rank = 0; rank < n; rank++) withHeads += plan.share(rank).heads.size() > 0;
                ASSERT_EQ(holders, withHeads) << tensor.name;
                ASSERT_EQ(cells, withHeads * all) << tensor.name;
            } else if (tensor.cut == Cut::KvHeads) {
                ASSERT_GE(cells, all) << tensor.name;
            } else {
                ASSERT_EQ(cells, all) << tensor.name;
            }
        }
    });
}

TEST(ShardPlan, AttentionFindsItsKvHeads) {
    forEachPlan([](const Architecture& arch, const std::vector<NodeSpec>&, const ShardPlan& plan) {
        const int group = arch.config.nHeads / arch.config.nKvHeads;
        for (int rank = 0; rank < plan.nRanks(); rank++) {
            const RankShare& share = plan.share(rank);
            const AttentionShape shape = plan.attentionShape(rank);
            ASSERT_EQ(shape.nHeads, share.heads.size());
            ASSERT_EQ(shape.nKvHeads, share.kvHeads.size());
            for (int head = 0; head < shape.nHeads; head++) {
                const int kvHead = (head + shape.headOffset) / shape.group;
                ASSERT_EQ(share.kvHeads.begin + kvHead, (share.heads.begin + head) / group);
                ASSERT_LT(kvHead, shape.nKvHeads);
            }
            // No KV head that nobody reads.
            if (shape.nHeads == 0) continue;
            ASSERT_EQ(share.kvHeads.end - 1, (share.heads.end - 1) / group);
        }
    });
}

TEST(ShardPlan, BytesAddUp) {
    forEachPlan([](const Architecture& arch, const std::vector<NodeSpec>& nodes, const ShardPlan& plan) {
        const Shapes shapes(arch);
        size_t once = 0, everywhere = 0, kvRows = 0, kvBytes = 0, withHeads = 0, nWithHeads = 0;
        for (const TensorDecl& tensor : declareTensors(arch)) {
            const size_t bytes = shapes.info(tensor.name).bytes();
            if (tensor.cut == Cut::Replicated)
                everywhere += bytes;
            else if (tensor.cut == Cut::WithHeads)
                withHeads += bytes;
            else if (tensor.cut == Cut::KvHeads)
                kvBytes += bytes;
            else if (tensor.cut != Cut::RootOnly || arch.config.tieEmbeddings)
                once += bytes;
        }
        size_t sum = 0;
        for (int rank = 0; rank < plan.nRanks(); rank++) {
            size_t ofRank = 0;
            for (const TensorSlice& slice : rankSlices(arch, plan, rank))
                ofRank += slice.rows() * storedBytes(shapes.info(slice.name).dtype, slice.cols());
            ASSERT_EQ(ofRank, storedWeightBytes(arch, plan, rank, shapes)) << "rank " << rank;
            sum += ofRank;
            kvRows += plan.share(rank).kvHeads.size();
            nWithHeads += plan.share(rank).heads.size() > 0;
        }
        const size_t expected =
            once + everywhere * nodes.size() + withHeads * nWithHeads + kvBytes / arch.config.nKvHeads * kvRows;
        ASSERT_EQ(sum, expected);
    });
}

TEST(ShardPlan, EveryRankWithHeadsCachesWholeLatents) {
    ModelConfig c;
    for (const auto& [name, arch] : models())
        if (name == "GLM-4.7-Flash") c = arch.config;
    c.nLayers = 47;
    const Architecture arch = makeArchitecture(c);
    for (const int n : {1, 3, 20, 24}) {
        const ShardPlan plan = makeShardPlan(arch, evenNodes(n));
        for (int rank = 0; rank < n; rank++) {
            const size_t expected = plan.share(rank).heads.size() > 0 ? 47 * (512 + 64) * 2 : 0;
            EXPECT_EQ(Decoder::kvBytesPerPosition(arch, plan.attentionShape(rank), DType::F16), expected);
        }
    }
}

TEST(ShardPlan, SlowNodesGetLess) {
    forEachPlan([](const Architecture& arch, const std::vector<NodeSpec>& nodes, const ShardPlan& plan) {
        for (int a = 0; a < plan.nRanks(); a++)
            for (int b = 0; b < plan.nRanks(); b++)
                for (const auto part : kParts) {
                    if (nodes[a].weight >= nodes[b].weight) continue;
                    ASSERT_LE(units(arch, plan, a, part), units(arch, plan, b, part))
                        << "rank " << a << " of weight " << nodes[a].weight << ", rank " << b << " of "
                        << nodes[b].weight;
                }
    });
    const Architecture arch = model("glm4", {4096, 2, 32, 2, 128, 13696, 151552});
    const ShardPlan plan = makeShardPlan(arch, {{2.0}, {1.0}, {1.0}});
    const Shapes shapes(arch);
    EXPECT_EQ(plan.share(0).heads.size(), 16);
    EXPECT_EQ(plan.share(0).ffn.size(), 6848);
    EXPECT_NEAR(static_cast<double>(storedWeightBytes(arch, plan, 0, shapes)) /
                    static_cast<double>(storedWeightBytes(arch, plan, 1, shapes)),
                2.0, 0.05);
}

/// The slowest rank decides how long a step takes: no plan in whole units may be faster.
TEST(ShardPlan, NoRankWorksLongerThanNeeded) {
    forEachPlan([](const Architecture& arch, const std::vector<NodeSpec>& nodes, const ShardPlan& plan) {
        for (const auto part : kParts) {
            const bool whole = plan.share(0).experts.size() == arch.config.moeIntermediateSize;
            if (part == &RankShare::experts && whole) continue;
            double longest = 0.0;
            for (int rank = 0; rank < plan.nRanks(); rank++)
                longest = std::max(longest, units(arch, plan, rank, part) / nodes[rank].weight);
            // Whoever works longest could not have given a unit away: nobody else would be done with it before.
            for (int rank = 0; rank < plan.nRanks(); rank++)
                ASSERT_GE((units(arch, plan, rank, part) + 1) / nodes[rank].weight, longest * (1.0 - 1e-9))
                    << "rank " << rank;
        }
    });
}

/// For each rank how many of a layer's experts it owns, and the sum of their recorded use.
struct Owned {
    std::vector<int> experts;
    std::vector<double> use;
};

Owned ownedOf(const Architecture& arch, const ShardPlan& plan, int layer, const std::vector<double>& use) {
    Owned owned{std::vector<int>(plan.nRanks()), std::vector<double>(plan.nRanks())};
    for (const TensorDecl& tensor : declareTensors(arch)) {
        if (tensor.layer != layer || tensor.expert < 0 || !tensor.name.ends_with("up.weight")) continue;
        for (int rank = 0; rank < plan.nRanks(); rank++) {
            if (!plan.slice(tensor, rank)) continue;
            owned.experts[rank]++;
            owned.use[rank] += use[tensor.expert];
        }
    }
    return owned;
}

/// A few experts do most of the work, as it is recorded of real models; some are never chosen.
std::vector<double> skewedUse(int nExperts, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<double> use(nExperts);
    for (int e = 0; e < nExperts; e++) use[e] = e < nExperts / 4 ? 0.0 : 1000.0 / (1.0 + e - nExperts / 4.0);
    std::shuffle(use.begin(), use.end(), random);
    return use;
}

TEST(ShardPlan, WholeExpertsAreBalancedByUse) {
    const Architecture arch = model("glm4moe", {4096, 3, 96, 8, 128, 10944, 151552}, {128, 8, 1, 1408, 1});
    // The dense first layer has no use; each other layer has its own.
    const ExpertUse use = {{}, skewedUse(128, 1), skewedUse(128, 2)};
    for (int n = 1; n <= 16; n++)
        for (const bool even : {true, false}) {
            SCOPED_TRACE(fmt::format("{} {} nodes", n, even ? "even" : "uneven"));
            const std::vector<NodeSpec> nodes = even ? evenNodes(n) : unevenNodes(n);
            const ShardPlan plan = makeShardPlan(arch, nodes, ExpertPlacement::Whole, use);
            double speed = 0.0;
            for (const NodeSpec& node : nodes) speed += node.weight;
            for (const int layer : {1, 2}) {
                const Owned owned = ownedOf(arch, plan, layer, use[layer]);
                EXPECT_EQ(std::accumulate(owned.experts.begin(), owned.experts.end(), 0), 128);
                const double total = std::accumulate(owned.use.begin(), owned.use.end(), 0.0);
                const double largest = *std::max_element(use[layer].begin(), use[layer].end());
                double longest = 0.0;
                for (int rank = 0; rank < n; rank++) {
                    longest = std::max(longest, owned.use[rank] / nodes[rank].weight);
                    // Memory follows the number: each rank holds its share of it, whatever the use. Whole pieces
                    // favour the fastest of uneven nodes a little.
                    EXPECT_NEAR(owned.experts[rank], 128 * nodes[rank].weight / speed, even ? 1.0 : 2.0)
                        << "rank " << rank;
                }
                const double fastest = std::max_element(nodes.begin(), nodes.end(), [](NodeSpec a, NodeSpec b) {
                                           return a.weight < b.weight;
                                       })->weight;
                // No rank is busy for longer than the even share, or the one expert that no placement can divide.
                EXPECT_LE(longest, 1.05 * std::max(total / speed, largest / fastest));
            }
        }
}

TEST(ShardPlan, WholeExpertsWithoutRecordedUse) {
    const Architecture arch = model("qwen3moe", {2048, 1, 32, 4, 128, 6144, 151936}, {128, 8, 0, 768, 0});
    for (int n = 1; n <= 16; n++) {
        const ShardPlan plan = makeShardPlan(arch, evenNodes(n), ExpertPlacement::Whole);
        for (const int experts : ownedOf(arch, plan, 0, std::vector<double>(128)).experts) {
            EXPECT_GE(experts, 128 / n);
            EXPECT_LE(experts, (128 + n - 1) / n);
        }
    }
}

TEST(ShardPlan, PlacementSuitsTheNumberOfNodes) {
    const Architecture intellect = model("glm4moe", {4096, 3, 96, 8, 128, 10944, 151552}, {128, 8, 1, 1408, 1});
    for (int n = 1; n <= 8; n++) EXPECT_EQ(choosePlacement(intellect, evenNodes(n)), ExpertPlacement::Sliced) << n;
    EXPECT_EQ(choosePlacement(intellect, evenNodes(64)), ExpertPlacement::Whole);  // 44 blocks for 64 ranks
    // 2.3 blocks for a weight of 1: some must take 3.
    std::vector<NodeSpec> oneIsFast = evenNodes(16);
    EXPECT_EQ(choosePlacement(intellect, oneIsFast), ExpertPlacement::Sliced);
    oneIsFast[0].weight = 4.0;
    EXPECT_EQ(choosePlacement(intellect, oneIsFast), ExpertPlacement::Whole);
}

TEST(ShardPlan, BadNodesAreRefused) {
    const Architecture arch = model("glm4moe", {4096, 3, 96, 8, 128, 10944, 151552}, {128, 8, 1, 1408, 1});
    EXPECT_THROW(makeShardPlan(arch, {}), ConfigError);
    EXPECT_THROW(makeShardPlan(arch, evenNodes(65)), ConfigError);
    for (const double weight : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")})
        EXPECT_THROW(makeShardPlan(arch, {{1.0}, {weight}}), ConfigError) << weight;
    const auto withUse = [&](const ExpertUse& use) {
        return makeShardPlan(arch, evenNodes(2), ExpertPlacement::Whole, use);
    };
    EXPECT_THROW(withUse({{}, {}}), ConfigError);                                  // layers
    EXPECT_THROW(withUse({{}, std::vector<double>(127), {}}), ConfigError);        // experts
    EXPECT_THROW(withUse({{}, std::vector<double>(128, -1.0), {}}), ConfigError);  // less than never
    EXPECT_THROW(withUse({{}, std::vector<double>(128, NAN), {}}), ConfigError);
    EXPECT_NO_THROW(withUse({{}, std::vector<double>(128, 0.0), {}}));
}

/// A model, nodes with memory, and what planWithinMemory makes of them.
struct MemoryCase {
    Architecture arch = model("glm4", {4096, 4, 32, 2, 128, 13696, 151552});
    Shapes shapes{arch};
    DecoderLimits limits = {.maxTokens = 64, .maxOutputs = 4, .nKvBlocks = 64, .maxPositions = 1024};

    size_t need(const ShardPlan& plan, int rank) const { return memoryNeed(arch, plan, rank, shapes, limits).total(); }
    ShardPlan plan(std::vector<NodeSpec> nodes, const std::vector<uint64_t>& memory) const {
        std::vector<std::string> names;
        for (size_t i = 0; i < nodes.size(); i++) names.push_back(fmt::format("node-{}", i));
        return planWithinMemory(arch, nodes, ExpertPlacement::Sliced, {}, shapes, limits, memory, names);
    }
};

TEST(ShardPlan, MemoryLimitsAreKept) {
    const MemoryCase c;
    for (int n = 2; n <= 16; n++) {
        SCOPED_TRACE(fmt::format("{} nodes", n));
        const size_t even = c.need(makeShardPlan(c.arch, evenNodes(n)), n - 1);
        // The first has a third less than an equal share needs, the others a half more.
        std::vector<uint64_t> memory(n, even + even / 2);
        memory[0] = even - even / 3;
        if (n == 2) memory[1] = 0;  // no limit
        const ShardPlan plan = c.plan(evenNodes(n), memory);
        for (int rank = 0; rank < n; rank++) {
            EXPECT_TRUE(memory[rank] == 0 || c.need(plan, rank) <= memory[rank]) << "rank " << rank;
            EXPECT_GT(plan.share(rank).ffn.size(), 0) << "rank " << rank;
        }
        EXPECT_LT(plan.share(0).ffn.size(), plan.share(1).ffn.size());
        // Room for everyone changes nothing.
        EXPECT_EQ(c.plan(unevenNodes(n), std::vector<uint64_t>(n)).hash(),
                  makeShardPlan(c.arch, unevenNodes(n)).hash());
    }
}

TEST(ShardPlan, RandomMemoryIsKeptOrRefused) {
    const MemoryCase c;
    std::mt19937 random(7);
    int kept = 0, refused = 0;
    for (int round = 0; round < 120; round++) {
        const int n = 2 + static_cast<int>(random() % 7);
        const size_t even = c.need(makeShardPlan(c.arch, evenNodes(n)), n - 1);
        std::vector<uint64_t> memory;
        double together = 0.0;
        for (int rank = 0; rank < n; rank++) {
            memory.push_back(static_cast<uint64_t>(even * (0.5 + random() % 1000 * 0.0015)));
            together += static_cast<double>(memory.back());
        }
        try {
            const ShardPlan plan = c.plan(unevenNodes(n), memory);
            kept++;
            for (int rank = 0; rank < n; rank++) EXPECT_LE(c.need(plan, rank), memory[rank]) << "rank " << rank;
        } catch (const ConfigError&) {
            refused++;
            // With a fifth to spare there is a plan.
            EXPECT_LT(together, 1.2 * static_cast<double>(even) * n) << n << " nodes, round " << round;
        }
    }
    EXPECT_GT(kept, 10);
    EXPECT_GT(refused, 5);
}

TEST(ShardPlan, RefusalTellsWhatEachNodeNeedsAndHas) {
    const MemoryCase c;
    try {
        c.plan(evenNodes(3), {200u << 20, 0, 300u << 20});
        c.plan(evenNodes(3), {100u << 20, 150u << 20, 120u << 20});
        FAIL() << "a cluster of 370 MB holds a model of 1.5 GB";
    } catch (const ConfigError& error) {
        const std::string text = error.what();
        for (const char* part : {"node-0", "node-1", "node-2", "needs", "has     100 MB", "has     150 MB"})
            EXPECT_NE(text.find(part), std::string::npos) << part << " is missing in:\n" << text;
    }
}

}  // namespace dllama
