#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "arch/architecture.hpp"
#include "format/legacy-model.hpp"
#include "format/model-file.hpp"
#include "tensor/blocks.hpp"

namespace dllama::test {

/// A small configuration of each family.
inline ModelConfig tinyConfig(const std::string& architecture) {
    ModelConfig c;
    c.name = "tiny-" + architecture;
    c.architecture = architecture;
    c.hiddenSize = 128;
    c.nLayers = 2;
    c.nHeads = 8;
    c.nKvHeads = 2;
    c.headDim = 32;
    c.intermediateSize = 192;
    c.vocabSize = 320;
    c.maxPositions = 256;
    c.rotaryDim = architecture.starts_with("glm") ? 16 : 32;
    c.eosTokenIds = {1};
    if (architecture == "qwen3" || architecture == "qwen3moe") c.useQkNorm = true;
    if (architecture == "glm" || architecture == "glm4moe") c.attentionBias = true;
    if (architecture == "glm4moe" || architecture == "glm4moelite" || architecture == "qwen3moe") {
        c.nRoutedExperts = 8;
        c.nExpertsPerToken = 2;
        c.moeIntermediateSize = 96;
    }
    if (architecture == "glm4moe" || architecture == "glm4moelite") {
        c.firstMoeLayer = 1;
        c.nSharedExperts = 1;
        c.scoringFunc = "sigmoid";
    }
    if (architecture == "glm4moelite") {
        c.nKvHeads = c.nHeads = 5;
        c.headDim = 48;
        c.qLoraRank = 96;
        c.kvLoraRank = 64;
        c.qkNopeHeadDim = 32;
        c.vHeadDim = 64;
    }
    if (architecture == "chatglm") {
        c.nKvHeads = c.nHeads = 4;
        c.hiddenAct = "gelu_tanh";
        c.attentionBias = true;
        c.gmaskTokenId = 301;
        c.maskTokenId = 300;
        c.bosTokenId = 304;
    }
    return c;
}

/// The tensors of a file of this model, in the order the file wants.
inline std::vector<TensorInfo> fileTensors(const ModelConfig& config, DType weightType) {
    if (legacyHeader(config, weightType)) return legacyTensors(config, weightType);
    std::vector<TensorInfo> tensors;
    for (const TensorDecl& decl : declareTensors(makeArchitecture(config)))
        tensors.push_back({decl.name, decl.isWeight ? weightType : DType::F32, decl.rows, decl.cols});
    return tensors;
}

/// Writes a model of random weights: matrices near zero, norm weights near one.
inline void writeTinyModel(const std::string& path, const ModelConfig& config, DType weightType, unsigned seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    writeModelFile(path, config, weightType, fileTensors(config, weightType), [&](const TensorInfo& t) {
        const bool isNorm = t.name.find("norm.weight") != std::string::npos;
        const float scale = t.rows > 1 ? 1.0f / std::sqrt(static_cast<float>(t.cols)) : 0.1f;
        std::vector<float> values(static_cast<size_t>(t.rows * t.cols));
        for (float& value : values) value = (isNorm ? 1.0f : 0.0f) + scale * normal(random);
        std::vector<std::byte> bytes(t.bytes());
        quantize(t.dtype, values.data(), bytes.data(), t.rows * t.cols);
        return bytes;
    });
}

}  // namespace dllama::test
