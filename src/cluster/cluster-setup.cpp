#include "cluster/cluster-setup.hpp"

#include <algorithm>

#include "base/json.hpp"

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

}  // namespace

std::string modelToJson(const ClusterSetup& s) {
    json document = {{"config", modelConfigToJson(s.config)},
                     {"weight_type", dtypeName(s.weightType)},
                     {"exceptions", json::object()}};
    for (const auto& [name, type] : s.exceptions) document["exceptions"][name] = dtypeName(type);
    return document.dump();
}

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
        if (s.numbers[rank] < 0 || s.numbers[rank] >= kMaxNodes || (rank > 0 && s.numbers[rank] <= s.numbers[rank - 1]))
            throw ProtocolError("{}: its setup numbers the nodes out of order", peer);
    const DecoderLimits& l = s.limits;
    if (l.kvType != DType::F16 && l.kvType != DType::F32)
        throw ProtocolError("{}: its setup wants a KV cache of {}, must be f16 or f32", peer, dtypeName(l.kvType));
    if (s.addresses.size() != s.nodes.size() || s.numbers.size() != s.nodes.size() || l.maxTokens < 1 ||
        l.maxOutputs < 1 || l.nKvBlocks < 1 || l.maxPositions < 1 || s.nodes.empty() || l.maxTokens > (1 << 20) ||
        l.nKvBlocks > (1 << 24) || l.maxPositions > (1 << 24) || l.maxOutputs > (1 << 20))
        throw ProtocolError("{}: its setup has impossible limits", peer);
    return s;
}

DType ClusterSetup::typeOf(const std::string& tensor) const {
    const auto found = exceptions.find(tensor);
    return found == exceptions.end() ? weightType : found->second;
}

DType embeddingType(const ClusterSetup& setup) {
    return setup.typeOf("token_embedding.weight");
}

int rankOf(const ClusterSetup& setup, int number, const std::string& peer) {
    const auto found = std::find(setup.numbers.begin(), setup.numbers.end(), number);
    if (found == setup.numbers.end()) throw ProtocolError("{}: its setup has no node {}", peer, number);
    return static_cast<int>(found - setup.numbers.begin());
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

}  // namespace dllama
