#include "format/legacy-model.hpp"

#include <algorithm>
#include <cmath>

#include "base/errors.hpp"

namespace dllama {

namespace {

enum Key : int32_t {
    kVersion = 0,
    kArchType = 1,
    kDim = 2,
    kHiddenDim = 3,
    kNLayers = 4,
    kNHeads = 5,
    kNKvHeads = 6,
    kNExperts = 7,
    kNActiveExperts = 8,
    kVocabSize = 9,
    kSeqLen = 10,
    kHiddenAct = 11,
    kRopeTheta = 12,
    kWeightType = 13,
    kRopeFactor = 14,
    kRopeLowFreq = 15,
    kRopeHighFreq = 16,
    kRopeOrigSeqLen = 17,
    kRopeType = 18,
    kHeadDim = 19,
    kNormEpsilon = 20,
    kMoeHiddenDim = 21,
    kLastKey = 21,
};

constexpr int32_t kArchLlama = 0xABCD00, kArchQwen3 = 0xABCD01, kArchQwen3Moe = 0xABCD02;
constexpr int32_t kRopeLlama31 = 2;
constexpr DType kWeightTypes[] = {DType::F32, DType::F16, DType::Q40, DType::Q80};

std::string architectureName(int32_t arch, const std::string& origin) {
    switch (arch) {
        case kArchLlama:
            return "llama";
        case kArchQwen3:
            return "qwen3";
        case kArchQwen3Moe:
            return "qwen3moe";
    }
    throw FormatError("{}: architecture 0x{:X} is not supported", origin, arch);
}

bool isIntegral(double value) {
    return value == std::floor(value) && value >= 0.0 && value < 2147483648.0;
}

}  // namespace

LegacyModel legacyModelFromHeader(const HeaderPairs& pairs, const std::string& origin) {
    std::map<int32_t, int32_t> values;
    for (const auto& [key, value] : pairs) {
        if (key < 0 || key > kLastKey) throw FormatError("{}: unknown header key {}", origin, key);
        values[key] = value;
    }
    const auto required = [&](int32_t key, const char* name) {
        if (!values.contains(key)) throw FormatError("{}: the header lacks {} (key {})", origin, name, key);
        return values[key];
    };
    const auto optional = [&](int32_t key, int32_t otherwise) {
        return values.contains(key) ? values[key] : otherwise;
    };

    LegacyModel model;
    ModelConfig& c = model.config;
    c.architecture = architectureName(required(kArchType, "the architecture"), origin);
    c.hiddenSize = required(kDim, "dim");
    c.intermediateSize = required(kHiddenDim, "hidden dim");
    c.nLayers = required(kNLayers, "the number of layers");
    c.nHeads = required(kNHeads, "the number of heads");
    c.nKvHeads = required(kNKvHeads, "the number of KV heads");
    c.vocabSize = required(kVocabSize, "the vocabulary size");
    c.maxPositions = required(kSeqLen, "the sequence length");
    if (c.nHeads < 1) throw FormatError("{}: num_attention_heads is {}, must be 1 or more", origin, c.nHeads);
    c.headDim = optional(kHeadDim, c.hiddenSize / c.nHeads);
    c.rotaryDim = c.headDim;
    c.ropeTheta = optional(kRopeTheta, 10000);
    if (optional(kHiddenAct, 1) != 1)
        throw FormatError("{}: hidden_act {} is not supported (1: silu)", origin, values[kHiddenAct]);
    const int32_t epsilon = optional(kNormEpsilon, 5);
    if (epsilon != 5 && epsilon != 6) throw FormatError("{}: norm epsilon {} is not supported (5, 6)", origin, epsilon);
    c.normEps = epsilon == 5 ? 1e-5 : 1e-6;

    const int32_t factor = optional(kRopeFactor, 1);
    if (c.architecture == "llama" && factor != 1) {
        c.ropeScaling.type = RopeScaling::Type::Llama3;
        c.ropeScaling.factor = factor;
        c.ropeScaling.lowFreqFactor = required(kRopeLowFreq, "the rope low frequency factor");
        c.ropeScaling.highFreqFactor = required(kRopeHighFreq, "the rope high frequency factor");
        c.ropeScaling.originalMaxPositions = required(kRopeOrigSeqLen, "the rope original sequence length");
    }

    c.nRoutedExperts = optional(kNExperts, 0);
    c.nExpertsPerToken = optional(kNActiveExperts, 0);
    if ((c.architecture == "qwen3moe") != c.isMoe())
        throw FormatError("{}: architecture {} with {} experts", origin, c.architecture, c.nRoutedExperts);
    if (c.isMoe()) c.moeIntermediateSize = required(kMoeHiddenDim, "the experts' hidden dim");
    c.useQkNorm = c.architecture != "llama";

    const int32_t type = required(kWeightType, "the weight type");
    if (type < 0 || type > 3) throw FormatError("{}: weight type {} is not supported (0 to 3)", origin, type);
    model.weightType = kWeightTypes[type];
    checkModelConfig(c, origin);
    return model;
}

std::optional<HeaderPairs> legacyHeader(const ModelConfig& c, DType weightType) {
    int32_t arch = 0;
    if (c.architecture == "llama")
        arch = kArchLlama;
    else if (c.architecture == "qwen3")
        arch = kArchQwen3;
    else if (c.architecture == "qwen3moe")
        arch = kArchQwen3Moe;
    else
        return std::nullopt;
    const bool llama3 = c.ropeScaling.type == RopeScaling::Type::Llama3;
    const bool plainRope = c.ropeScaling.type == RopeScaling::Type::None && isIntegral(c.ropeTheta);
    const bool statedRope = llama3 && arch == kArchLlama && isIntegral(c.ropeTheta) && c.ropeScaling.factor != 1.0 &&
                            isIntegral(c.ropeScaling.factor) && isIntegral(c.ropeScaling.lowFreqFactor) &&
                            isIntegral(c.ropeScaling.highFreqFactor) && isIntegral(c.ropeScaling.originalMaxPositions);
    if (!plainRope && !statedRope) return std::nullopt;
    if (c.normEps != 1e-5 && c.normEps != 1e-6) return std::nullopt;
    const auto* const stated = std::find(std::begin(kWeightTypes), std::end(kWeightTypes), weightType);
    if (c.attentionBias || c.nNextnLayers > 0 || stated == std::end(kWeightTypes) || c.rotaryDim != c.headDim)
        return std::nullopt;
    if (c.isMoe() && !(c.normTopkProb && c.firstMoeLayer == 0 && c.nSharedExperts == 0 && c.nGroups == 1 &&
                       c.routedScalingFactor == 1.0 && c.scoringFunc == "softmax"))
        return std::nullopt;

    const auto type = static_cast<int32_t>(stated - kWeightTypes);
    HeaderPairs pairs = {{kVersion, 0},
                         {kArchType, arch},
                         {kHiddenAct, 1},
                         {kDim, c.hiddenSize},
                         {kHiddenDim, c.intermediateSize},
                         {kNLayers, c.nLayers},
                         {kNHeads, c.nHeads},
                         {kNKvHeads, c.nKvHeads},
                         {kWeightType, type},
                         {kSeqLen, c.maxPositions},
                         {kVocabSize, c.vocabSize},
                         {kNExperts, c.nRoutedExperts},
                         {kNActiveExperts, c.nExpertsPerToken},
                         {kRopeTheta, static_cast<int32_t>(c.ropeTheta)}};
    if (llama3) {
        pairs.insert(pairs.end(), {{kRopeFactor, static_cast<int32_t>(c.ropeScaling.factor)},
                                   {kRopeLowFreq, static_cast<int32_t>(c.ropeScaling.lowFreqFactor)},
                                   {kRopeHighFreq, static_cast<int32_t>(c.ropeScaling.highFreqFactor)},
                                   {kRopeOrigSeqLen, static_cast<int32_t>(c.ropeScaling.originalMaxPositions)},
                                   {kRopeType, kRopeLlama31}});
    }
    pairs.push_back({kHeadDim, c.headDim});
    pairs.push_back({kNormEpsilon, c.normEps == 1e-5 ? 5 : 6});
    if (c.isMoe()) pairs.push_back({kMoeHiddenDim, c.moeIntermediateSize});
    return pairs;
}

std::vector<TensorInfo> legacyTensors(const ModelConfig& c, DType weight, size_t maxBytes) {
    std::vector<TensorInfo> tensors;
    size_t bytes = 0;
    const auto matrix = [&](std::string name, int64_t rows, int64_t cols, DType type) {
        if (bytes > maxBytes) return;
        tensors.push_back({std::move(name), type, rows, cols});
        bytes += tensors.back().bytes();
    };
    const auto vector = [&](std::string name, int64_t size) { matrix(std::move(name), 1, size, DType::F32); };
    const auto mlp = [&](const std::string& prefix, int64_t width) {
        matrix(prefix + "gate.weight", width, c.hiddenSize, weight);
        matrix(prefix + "down.weight", c.hiddenSize, width, weight);
        matrix(prefix + "up.weight", width, c.hiddenSize, weight);
    };
    matrix("token_embedding.weight", c.vocabSize, c.hiddenSize, DType::F32);
    for (int layer = 0; layer < c.nLayers && bytes <= maxBytes; layer++) {
        const std::string prefix = fmt::format("layers.{}.", layer);
        matrix(prefix + "attn.q.weight", c.qDim(), c.hiddenSize, weight);
        matrix(prefix + "attn.k.weight", c.kvDim(), c.hiddenSize, weight);
        matrix(prefix + "attn.v.weight", c.kvDim(), c.hiddenSize, weight);
        matrix(prefix + "attn.o.weight", c.hiddenSize, c.qDim(), weight);
        if (c.isMoe()) {
            matrix(prefix + "moe.router.weight", c.nRoutedExperts, c.hiddenSize, DType::F32);
            for (int e = 0; e < c.nRoutedExperts; e++)
                mlp(fmt::format("{}moe.experts.{}.", prefix, e), c.moeIntermediateSize);
        } else {
            mlp(prefix + "ffn.", c.intermediateSize);
        }
        if (c.useQkNorm) {
            vector(prefix + "attn.q_norm.weight", c.headDim);
            vector(prefix + "attn.k_norm.weight", c.headDim);
        }
        vector(prefix + "attn_norm.weight", c.hiddenSize);
        vector(prefix + "ffn_norm.weight", c.hiddenSize);
    }
    vector("final_norm.weight", c.hiddenSize);
    matrix("head.weight", c.vocabSize, c.hiddenSize, weight);
    return tensors;
}

}  // namespace dllama
