#include "format/model-config.hpp"

#include <set>
#include <string_view>

#include "base/errors.hpp"
#include "base/json.hpp"

namespace dllama {

namespace {

using nlohmann::json;

/// Reads the fields of an object one by one and at last refuses those that nobody asked for.
class Fields {
  public:
    Fields(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {
        if (!object.is_object()) throw FormatError("{}: the configuration is not a JSON object", origin_);
    }

    template <typename T>
    void required(const char* key, T& value) {
        if (!object_.contains(key)) throw FormatError("{}: the configuration lacks {}", origin_, key);
        optional(key, value);
    }

    template <typename T>
    void optional(const char* key, T& value) {
        known_.insert(key);
        if (!object_.contains(key)) return;
        try {
            value = checked<T>(object_.at(key));
        } catch (const json::exception&) {
            throw FormatError("{}: {} has the value {}", origin_, key, object_.at(key).dump());
        }
    }

    const json* object(const char* key) {
        known_.insert(key);
        return object_.contains(key) && !object_.at(key).is_null() ? &object_.at(key) : nullptr;
    }

    void refuseUnknown() const {
        for (const auto& [key, value] : object_.items())
            if (!known_.contains(key)) throw FormatError("{}: unknown field {} = {}", origin_, key, value.dump());
    }

  private:
    template <typename T>
    static T checked(const json& value) {
        if constexpr (std::is_same_v<T, int>) {
            const auto wide =
                value.is_number_integer() ? value.get<int64_t>() : throw json::type_error::create(302, "", &value);
            if (wide < -1 || wide > (1 << 30)) throw json::out_of_range::create(406, "", &value);
            return static_cast<int>(wide);
        } else {
            return value.get<T>();
        }
    }

    const json& object_;
    std::string origin_;
    std::set<std::string_view> known_;
};

RopeScaling ropeScalingFromJson(const json& object, const std::string& origin) {
    Fields fields(object, origin + ": rope_scaling");
    RopeScaling scaling;
    std::string type;
    fields.required("type", type);
    fields.required("factor", scaling.factor);
    fields.required("original_max_position_embeddings", scaling.originalMaxPositions);
    if (type == "llama3") {
        scaling.type = RopeScaling::Type::Llama3;
        fields.required("low_freq_factor", scaling.lowFreqFactor);
        fields.required("high_freq_factor", scaling.highFreqFactor);
    } else if (type == "yarn") {
        scaling.type = RopeScaling::Type::Yarn;
        fields.required("beta_fast", scaling.betaFast);
        fields.required("beta_slow", scaling.betaSlow);
        fields.required("attention_factor", scaling.attentionFactor);
    } else {
        throw FormatError("{}: rope_scaling type {} is not supported (llama3, yarn)", origin, type);
    }
    fields.refuseUnknown();
    return scaling;
}

json ropeScalingToJson(const RopeScaling& scaling) {
    switch (scaling.type) {
        case RopeScaling::Type::None:
            return nullptr;
        case RopeScaling::Type::Llama3:
            return {{"type", "llama3"},
                    {"factor", scaling.factor},
                    {"low_freq_factor", scaling.lowFreqFactor},
                    {"high_freq_factor", scaling.highFreqFactor},
                    {"original_max_position_embeddings", scaling.originalMaxPositions}};
        case RopeScaling::Type::Yarn:
            return {{"type", "yarn"},
                    {"factor", scaling.factor},
                    {"beta_fast", scaling.betaFast},
                    {"beta_slow", scaling.betaSlow},
                    {"attention_factor", scaling.attentionFactor},
                    {"original_max_position_embeddings", scaling.originalMaxPositions}};
    }
    return nullptr;
}

}  // namespace

std::string modelConfigToJson(const ModelConfig& c) {
    json object = {{"name", c.name},
                   {"architecture", c.architecture},
                   {"hidden_size", c.hiddenSize},
                   {"num_hidden_layers", c.nLayers},
                   {"num_attention_heads", c.nHeads},
                   {"num_key_value_heads", c.nKvHeads},
                   {"head_dim", c.headDim},
                   {"intermediate_size", c.intermediateSize},
                   {"vocab_size", c.vocabSize},
                   {"max_position_embeddings", c.maxPositions},
                   {"norm_eps", c.normEps},
                   {"rope_theta", c.ropeTheta},
                   {"rotary_dim", c.rotaryDim},
                   {"rope_scaling", ropeScalingToJson(c.ropeScaling)},
                   {"attention_bias", c.attentionBias},
                   {"tie_word_embeddings", c.tieEmbeddings},
                   {"hidden_act", c.hiddenAct},
                   {"eos_token_ids", c.eosTokenIds},
                   {"use_qk_norm", c.useQkNorm},
                   {"num_nextn_predict_layers", c.nNextnLayers}};
    if (c.isMoe()) {
        object["n_routed_experts"] = c.nRoutedExperts;
        object["num_experts_per_tok"] = c.nExpertsPerToken;
        object["n_shared_experts"] = c.nSharedExperts;
        object["moe_intermediate_size"] = c.moeIntermediateSize;
        object["first_k_dense_replace"] = c.firstMoeLayer;
        object["n_group"] = c.nGroups;
        object["topk_group"] = c.topkGroups;
        object["norm_topk_prob"] = c.normTopkProb;
        object["routed_scaling_factor"] = c.routedScalingFactor;
        object["scoring_func"] = c.scoringFunc;
    }
    if (c.isLatent()) {
        object["q_lora_rank"] = c.qLoraRank;
        object["kv_lora_rank"] = c.kvLoraRank;
        object["qk_nope_head_dim"] = c.qkNopeHeadDim;
        object["v_head_dim"] = c.vHeadDim;
    }
    if (c.architecture == "chatglm") {
        object["gmask_token_id"] = c.gmaskTokenId;
        object["mask_token_id"] = c.maskTokenId;
        object["bos_token_id"] = c.bosTokenId;
    }
    return object.dump();
}

ModelConfig modelConfigFromJson(const std::string& text, const std::string& origin) {
    const json object = parseJson(text);
    if (object.is_discarded())
        throw FormatError("{}: the configuration is not valid JSON of at most {} levels", origin, kMaxJsonDepth);
    Fields fields(object, origin);
    ModelConfig c;
    fields.optional("name", c.name);
    fields.required("architecture", c.architecture);
    fields.required("hidden_size", c.hiddenSize);
    fields.required("num_hidden_layers", c.nLayers);
    fields.required("num_attention_heads", c.nHeads);
    fields.required("num_key_value_heads", c.nKvHeads);
    fields.required("head_dim", c.headDim);
    fields.required("intermediate_size", c.intermediateSize);
    fields.required("vocab_size", c.vocabSize);
    fields.required("max_position_embeddings", c.maxPositions);
    fields.required("norm_eps", c.normEps);
    fields.required("rope_theta", c.ropeTheta);
    fields.required("rotary_dim", c.rotaryDim);
    fields.required("attention_bias", c.attentionBias);
    fields.required("tie_word_embeddings", c.tieEmbeddings);
    fields.required("hidden_act", c.hiddenAct);
    fields.required("eos_token_ids", c.eosTokenIds);
    if (const json* scaling = fields.object("rope_scaling")) c.ropeScaling = ropeScalingFromJson(*scaling, origin);
    fields.optional("n_routed_experts", c.nRoutedExperts);
    fields.optional("num_experts_per_tok", c.nExpertsPerToken);
    fields.optional("n_shared_experts", c.nSharedExperts);
    fields.optional("moe_intermediate_size", c.moeIntermediateSize);
    fields.optional("first_k_dense_replace", c.firstMoeLayer);
    fields.optional("n_group", c.nGroups);
    fields.optional("topk_group", c.topkGroups);
    fields.optional("norm_topk_prob", c.normTopkProb);
    fields.optional("routed_scaling_factor", c.routedScalingFactor);
    fields.optional("scoring_func", c.scoringFunc);
    fields.optional("q_lora_rank", c.qLoraRank);
    fields.optional("kv_lora_rank", c.kvLoraRank);
    fields.optional("qk_nope_head_dim", c.qkNopeHeadDim);
    fields.optional("v_head_dim", c.vHeadDim);
    fields.optional("use_qk_norm", c.useQkNorm);
    fields.optional("num_nextn_predict_layers", c.nNextnLayers);
    fields.optional("gmask_token_id", c.gmaskTokenId);
    fields.optional("mask_token_id", c.maskTokenId);
    fields.optional("bos_token_id", c.bosTokenId);
    fields.refuseUnknown();
    checkModelConfig(c, origin);
    return c;
}

void checkModelConfig(const ModelConfig& c, const std::string& origin) {
    const auto within = [&](const char* field, int64_t value, int64_t low, int64_t high) {
        if (value < low || value > high)
            throw FormatError("{}: {} is {}, must be from {} to {}", origin, field, value, low, high);
    };
    within("hidden_size", c.hiddenSize, 32, 1 << 17);
    within("num_hidden_layers", c.nLayers, 1, 1024);
    within("num_attention_heads", c.nHeads, 1, 4096);
    within("num_key_value_heads", c.nKvHeads, 1, c.nHeads);
    within("head_dim", c.headDim, 8, 256);
    within("intermediate_size", c.intermediateSize, c.isMoe() ? 0 : 32, 1 << 20);
    within("vocab_size", c.vocabSize, 1, 1 << 24);
    within("max_position_embeddings", c.maxPositions, 1, 1 << 24);
    within("rotary_dim", c.rotaryDim, 2, c.headDim);
    within("n_routed_experts", c.nRoutedExperts, 0, 1024);
    within("num_nextn_predict_layers", c.nNextnLayers, 0, 16);
    // Each expert of each layer has its tensors, which whoever reads the configuration makes a list of.
    within("num_hidden_layers x n_routed_experts", int64_t{c.nLayers} * c.nRoutedExperts, 0, 1 << 17);
    if (c.nHeads % c.nKvHeads != 0)
        throw FormatError("{}: num_attention_heads {} is no multiple of num_key_value_heads {}", origin, c.nHeads,
                          c.nKvHeads);
    if (c.headDim % 8 != 0) throw FormatError("{}: head_dim {} is no multiple of 8", origin, c.headDim);
    if (c.rotaryDim % 2 != 0) throw FormatError("{}: rotary_dim {} is odd", origin, c.rotaryDim);
    if (!(c.normEps > 0.0 && c.normEps < 1.0)) throw FormatError("{}: norm_eps is {}", origin, c.normEps);
    if (!(c.ropeTheta > 1.0)) throw FormatError("{}: rope_theta is {}", origin, c.ropeTheta);
    if (c.ropeScaling.type != RopeScaling::Type::None &&
        !(c.ropeScaling.factor > 0.0 && c.ropeScaling.originalMaxPositions > 0.0))
        throw FormatError("{}: rope_scaling factor is {}, original_max_position_embeddings {}", origin,
                          c.ropeScaling.factor, c.ropeScaling.originalMaxPositions);
    within("kv_lora_rank", c.kvLoraRank, 0, 4096);
    if (c.isLatent()) {
        within("q_lora_rank", c.qLoraRank, 0, 1 << 14);
        within("qk_nope_head_dim", c.qkNopeHeadDim, 32, c.headDim);
        within("v_head_dim", c.vHeadDim, 32, 512);
        for (const auto& [field, value] : {std::pair{"q_lora_rank", c.qLoraRank},
                                           {"kv_lora_rank", c.kvLoraRank},
                                           {"qk_nope_head_dim", c.qkNopeHeadDim},
                                           {"v_head_dim", c.vHeadDim}})
            if (value % 32 != 0) throw FormatError("{}: {} {} is no multiple of 32", origin, field, value);
        if (c.headDim != c.qkNopeHeadDim + c.rotaryDim)
            throw FormatError("{}: head_dim {} is not qk_nope_head_dim {} and rotary_dim {}", origin, c.headDim,
                              c.qkNopeHeadDim, c.rotaryDim);
        if (c.nKvHeads != c.nHeads)
            throw FormatError("{}: num_key_value_heads {} is not num_attention_heads {}", origin, c.nKvHeads, c.nHeads);
    }
    if (!c.isMoe()) return;
    within("num_experts_per_tok", c.nExpertsPerToken, 1, c.nRoutedExperts);
    within("n_shared_experts", c.nSharedExperts, 0, 64);
    within("moe_intermediate_size", c.moeIntermediateSize, 32, 1 << 20);
    within("first_k_dense_replace", c.firstMoeLayer, 0, c.nLayers);
    within("n_group", c.nGroups, 1, c.nRoutedExperts);
    within("topk_group", c.topkGroups, 1, c.nGroups);
    if (c.nRoutedExperts % c.nGroups != 0 || c.nExpertsPerToken > c.nRoutedExperts / c.nGroups * c.topkGroups)
        throw FormatError("{}: {} experts in {} groups, of which {} are open, cannot give {} per token", origin,
                          c.nRoutedExperts, c.nGroups, c.topkGroups, c.nExpertsPerToken);
    if (c.scoringFunc != "softmax" && c.scoringFunc != "sigmoid")
        throw FormatError("{}: scoring_func {} is not supported (softmax, sigmoid)", origin, c.scoringFunc);
}

}  // namespace dllama
