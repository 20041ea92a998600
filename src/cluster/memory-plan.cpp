#include "cluster/memory-plan.hpp"

#include <algorithm>

#include "model/weights.hpp"
#include "net/frame.hpp"

namespace dllama {

namespace {

/// Shares of the work, 1 in all, in proportion to the nodes' weights but none above its cap. Nothing if the caps leave
/// work over.
std::vector<double> sharesWithin(const std::vector<double>& caps, const std::vector<NodeSpec>& nodes) {
    constexpr double kNothing = 1e-9;
    std::vector<double> shares(caps.size(), 0.0);
    std::vector<bool> isFull(caps.size(), false);
    for (double left = 1.0; left > kNothing;) {
        double weights = 0.0;
        for (size_t i = 0; i < caps.size(); i++) weights += isFull[i] ? 0.0 : nodes[i].weight;
        if (weights == 0.0) return {};
        // What goes beyond a cap is dealt to the others in the next turn.
        const double each = left / weights;
        for (size_t i = 0; i < caps.size(); i++) {
            if (isFull[i]) continue;
            const double share = std::min(each * nodes[i].weight, caps[i] - shares[i]);
            isFull[i] = share < each * nodes[i].weight;
            shares[i] += share;
            left -= share;
        }
    }
    return shares;
}

std::string memoryTable(const std::vector<MemoryNeed>& needs, const std::vector<uint64_t>& memory,
                        const std::vector<std::string>& names) {
    std::string table = "the model does not fit into this cluster:";
    for (size_t rank = 0; rank < needs.size(); rank++)
        table += fmt::format("\n  {:<24} needs {:>7} MB (weights {}, KV cache {}, buffers {}), has {}", names[rank],
                             needs[rank].total() >> 20, needs[rank].weights >> 20, needs[rank].kv >> 20,
                             needs[rank].buffers >> 20,
                             memory[rank] == 0 ? "no limit" : fmt::format("{:>7} MB", memory[rank] >> 20));
    return table;
}

}  // namespace

BatchLimits batchLimits(const Architecture& arch, const DecoderLimits& limits, DType embeddingType) {
    return {limits.maxTokens, limits.maxOutputs,      limits.nKvBlocks, limits.maxPositions,
            arch.ropeParts,   arch.config.hiddenSize, embeddingType};
}

void checkFrames(const Architecture& arch, const ShardPlan& plan, const DecoderLimits& limits, DType embeddingType,
                 Wire wire) {
    const size_t part = wireBytes(wire, static_cast<size_t>(limits.maxTokens) * arch.config.hiddenSize);
    size_t rows = 0;
    for (int rank = 1; rank < plan.nRanks(); rank++)
        rows = std::max(rows, sizeof(float) * limits.maxOutputs * plan.share(rank).vocabulary.size());
    const size_t batch = batchLimits(arch, limits, embeddingType).maxBytes();
    for (const auto& [bytes, type] :
         {std::pair{part, FrameType::Part}, {rows, FrameType::Rows}, {batch, FrameType::Batch}})
        if (bytes > maxPayload(type))
            throw ConfigError(
                "a step of {} tokens, {} of them with logits, needs a message of {} MB between the nodes, "
                "the limit is {} MB: make the batch smaller",
                limits.maxTokens, limits.maxOutputs, bytes >> 20, maxPayload(type) >> 20);
}

MemoryNeed memoryNeed(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source,
                      const DecoderLimits& limits) {
    const size_t perPosition = Decoder::kvBytesPerPosition(arch, plan.attentionShape(rank), limits.kvType);
    return {storedWeightBytes(arch, plan, rank, source), perPosition * limits.nKvBlocks * kKvBlockPositions,
            Decoder::bufferBytes(arch, plan.share(rank), limits)};
}

ShardPlan planWithinMemory(const Architecture& arch, std::vector<NodeSpec>& nodes, ExpertPlacement placement,
                           const ExpertUse& use, const TensorSource& source, const DecoderLimits& limits,
                           const std::vector<uint64_t>& memory, const std::vector<std::string>& names) {
    // A cap that is met shrinks by a hundredth at least: by then the caps have long left work over, or all have room.
    constexpr int kRounds = 200;
    constexpr double kNarrower = 0.99;
    constexpr double kIdleWeight = 1e-9;  // of a node that is dealt nothing
    const std::vector<NodeSpec> wanted = nodes;
    std::vector<double> caps(nodes.size(), 1.0);  // the share of the work that a node can hold, as far as is known
    std::vector<double> shares = sharesWithin(caps, wanted);
    const int unit = cutUnit(arch, [&](const std::string& tensor) { return source.info(tensor).dtype; });
    for (int round = 0;; round++) {
        ShardPlan plan = makeShardPlan(arch, nodes, placement, use, unit);
        std::vector<MemoryNeed> needs;
        bool fits = true, mayFit = round < kRounds;
        for (int rank = 0; rank < plan.nRanks(); rank++) {
            needs.push_back(memoryNeed(arch, plan, rank, source, limits));
            const auto need = static_cast<double>(needs[rank].total()), room = static_cast<double>(memory[rank]);
            if (memory[rank] == 0 || need <= room) continue;
            fits = false;
            // The need grows about linearly with the share, from what a node without work needs.
            std::vector<NodeSpec> idle(nodes.size(), NodeSpec{1.0});
            idle[rank].weight = kIdleWeight;
            const ShardPlan without = makeShardPlan(arch, idle, placement, use, unit);
            const auto least = static_cast<double>(memoryNeed(arch, without, rank, source, limits).total());
            mayFit = mayFit && least < room;
            caps[rank] = kNarrower * shares[rank] * (room - least) / (need - least);
        }
        if (fits) return plan;
        if (mayFit) shares = sharesWithin(caps, wanted);
        if (!mayFit || shares.empty()) throw ConfigError("{}", memoryTable(needs, memory, names));
        for (size_t rank = 0; rank < nodes.size(); rank++) nodes[rank].weight = shares[rank];
    }
}

}  // namespace dllama
