#include "cluster/cluster-setup.hpp"

#include <xxhash.h>

#include <algorithm>

#include "base/json.hpp"
#include "model/weights.hpp"
#include "net/frame.hpp"

namespace dllama {

namespace {

using nlohmann::json;

DType dtypeOf(const json& value) {
    const auto type = dtypeFromName(value.get<std::string>());
    if (!type) throw json::other_error::create(501, "dtype " + value.get<std::string>(), nullptr);
    return *type;
}

uint64_t idOf(const json& value) {
    return std::stoull(value.get<std::string>(), nullptr, 16);
}

std::string hex(uint64_t value) {
    return fmt::format("{:016x}", value);
}

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

std::string setupToJson(const ClusterSetup& s) {
    json document = {{"config", modelConfigToJson(s.config)},
                     {"model_id", hex(s.modelId)},
                     {"weight_type", dtypeName(s.weightType)},
                     {"exceptions", json::object()},
                     {"node_weights", json::array()},
                     {"placement", s.placement == ExpertPlacement::Whole ? "whole" : "sliced"},
                     {"expert_use", s.expertUse},
                     {"plan_hash", hex(s.planHash)},
                     {"limits",
                      {{"max_tokens", s.limits.maxTokens},
                       {"max_outputs", s.limits.maxOutputs},
                       {"kv_blocks", s.limits.nKvBlocks},
                       {"max_positions", s.limits.maxPositions},
                       {"kv_type", dtypeName(s.limits.kvType)}}},
                     {"wire", wireName(s.wire)},
                     {"collectives", collectivesName(s.collectives)},
                     {"rendezvous", s.rendezvous},
                     {"numbers", s.numbers},
                     {"addresses", s.addresses}};
    for (const auto& [name, type] : s.exceptions) document["exceptions"][name] = dtypeName(type);
    for (const NodeSpec& node : s.nodes) document["node_weights"].push_back(node.weight);
    return document.dump();
}

ClusterSetup setupFromJson(const std::string& text, const std::string& peer) {
    ClusterSetup s;
    try {
        const json document = parseJson(text);
        if (document.is_discarded())
            throw ProtocolError("{}: its setup is not JSON of at most {} levels", peer, kMaxJsonDepth);
        s.config = modelConfigFromJson(document.at("config").get<std::string>(), peer);
        s.modelId = idOf(document.at("model_id"));
        s.weightType = dtypeOf(document.at("weight_type"));
        for (const auto& [name, type] : document.at("exceptions").items()) s.exceptions[name] = dtypeOf(type);
        for (const json& weight : document.at("node_weights")) s.nodes.push_back({weight.get<double>()});
        s.placement = document.at("placement") == "whole" ? ExpertPlacement::Whole : ExpertPlacement::Sliced;
        s.expertUse = document.at("expert_use").get<ExpertUse>();
        s.planHash = idOf(document.at("plan_hash"));
        const json& limits = document.at("limits");
        s.limits.maxTokens = integerFrom<int>(limits.at("max_tokens"));
        s.limits.maxOutputs = integerFrom<int>(limits.at("max_outputs"));
        s.limits.nKvBlocks = integerFrom<int>(limits.at("kv_blocks"));
        s.limits.maxPositions = integerFrom<int>(limits.at("max_positions"));
        s.limits.kvType = dtypeOf(limits.at("kv_type"));
        const auto wire = wireFromName(document.at("wire").get<std::string>());
        if (!wire) throw ProtocolError("{}: wire {} is not known", peer, document.at("wire").get<std::string>());
        s.wire = *wire;
        const std::string collectives = document.at("collectives").get<std::string>();
        const auto how = collectivesFromName(collectives);
        if (!how) throw ProtocolError("{}: collectives {} are not known", peer, collectives);
        s.collectives = *how;
        s.rendezvous = document.at("rendezvous").get<std::string>();
        for (const json& number : document.at("numbers")) s.numbers.push_back(integerFrom<int>(number));
        s.addresses = document.at("addresses").get<std::vector<std::string>>();
    } catch (const json::exception& error) {
        throw ProtocolError("{}: its setup is damaged: {}", peer, error.what());
    } catch (const std::logic_error&) {
        throw ProtocolError("{}: its setup holds an impossible number", peer);
    }
    for (size_t rank = 0; rank < s.numbers.size(); rank++)
        if (s.numbers[rank] < 0 || s.numbers[rank] >= 64 || (rank > 0 && s.numbers[rank] <= s.numbers[rank - 1]))
            throw ProtocolError("{}: its setup numbers the nodes out of order", peer);
    const DecoderLimits& l = s.limits;
    if (s.addresses.size() != s.nodes.size() || s.numbers.size() != s.nodes.size() || l.maxTokens < 1 ||
        l.maxOutputs < 1 || l.nKvBlocks < 1 || l.maxPositions < 1 || l.maxTokens > (1 << 20) ||
        l.nKvBlocks > (1 << 24) || l.maxPositions > (1 << 24) || l.maxOutputs > (1 << 20))
        throw ProtocolError("{}: its setup has impossible limits", peer);
    return s;
}

uint64_t weightsId(const ModelFile& file) {
    if (file.tensors().empty() || file.tensorHash(file.tensors().front().name) != 0) return file.contentId();
    constexpr int64_t kSampleRows = 4;
    XXH3_state_t* state = XXH3_createState();
    XXH3_64bits_reset_withSeed(state, file.contentId());
    std::vector<std::byte> scratch;
    for (const TensorInfo& tensor : file.tensors()) {
        // From the middle: first rows often hold rare tokens.
        const int64_t begin = tensor.rows / 2;
        const auto sample =
            file.read({tensor.name, begin, std::min(tensor.rows, begin + kSampleRows), 0, tensor.cols}, scratch);
        XXH3_64bits_update(state, sample.data(), sample.size());
    }
    const uint64_t id = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return id;
}

DType ClusterSetup::typeOf(const std::string& tensor) const {
    const auto found = exceptions.find(tensor);
    return found == exceptions.end() ? weightType : found->second;
}

void describeModel(const ModelFile& file, const Architecture& arch, ClusterSetup& setup) {
    setup.config = arch.config;
    setup.modelId = weightsId(file);
    setup.weightType = file.weightType();
    for (const TensorDecl& decl : declareTensors(arch)) {
        const DType stored = file.info(decl.name).dtype;
        if (stored != (decl.isWeight ? setup.weightType : DType::F32)) setup.exceptions[decl.name] = stored;
    }
}

std::string statisticsToJson(const NodeStatistics& s) {
    return json{{"compute", s.computeSeconds},
                {"collectives", s.sync.nCollectives},
                {"sync", s.sync.seconds},
                {"p50", s.sync.p50Us},
                {"p99", s.sync.p99Us},
                {"sent", s.sync.bytesSent},
                {"received", s.sync.bytesReceived}}
        .dump();
}

std::optional<NodeStatistics> statisticsFromJson(std::string_view text) {
    const json document = parseJson(text);
    NodeStatistics s;
    try {
        s.computeSeconds = document.at("compute").get<double>();
        s.sync.nCollectives = integerFrom<uint64_t>(document.at("collectives"));
        s.sync.seconds = document.at("sync").get<double>();
        s.sync.p50Us = document.at("p50").get<double>();
        s.sync.p99Us = document.at("p99").get<double>();
        s.sync.bytesSent = integerFrom<uint64_t>(document.at("sent"));
        s.sync.bytesReceived = integerFrom<uint64_t>(document.at("received"));
    } catch (const json::exception&) {
        return std::nullopt;
    }
    return s;
}

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
