#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dllama {

/// How rotation angles are stretched for contexts longer than the model was first trained on.
struct RopeScaling {
    enum class Type { None, Llama3, Yarn };
    Type type = Type::None;
    double factor = 1.0;
    double originalMaxPositions = 0.0;
    double lowFreqFactor = 1.0, highFreqFactor = 4.0;               // Llama3
    double betaFast = 32.0, betaSlow = 1.0, attentionFactor = 1.0;  // Yarn
};

/// What a .m file says about its model: every field of the configuration by its Hugging Face name (in camelCase).
struct ModelConfig {
    std::string name;
    std::string architecture;  // llama, qwen3, qwen3moe, glm, glm4, glm4moe, glm4moelite, chatglm

    int hiddenSize = 0;
    int nLayers = 0;
    int nHeads = 0;
    int nKvHeads = 0;
    int headDim = 0;
    int intermediateSize = 0;
    int vocabSize = 0;
    int maxPositions = 0;
    double normEps = 1e-5;
    double ropeTheta = 10000.0;
    int rotaryDim = 0;
    RopeScaling ropeScaling;
    bool attentionBias = false;
    bool tieEmbeddings = false;
    std::string hiddenAct = "silu";
    std::vector<int> eosTokenIds;

    // MoE (nRoutedExperts > 0).
    int nRoutedExperts = 0;
    int nExpertsPerToken = 0;
    int nSharedExperts = 0;
    int moeIntermediateSize = 0;
    int firstMoeLayer = 0;  // first_k_dense_replace
    int nGroups = 1;
    int topkGroups = 1;
    bool normTopkProb = true;
    double routedScalingFactor = 1.0;
    std::string scoringFunc = "softmax";

    // Multi-head latent attention (kvLoraRank > 0): headDim is qkNopeHeadDim + rotaryDim, and every head has keys of
    // its own, made of the latent.
    int qLoraRank = 0;  // 0: queries are made of the hidden state
    int kvLoraRank = 0;
    int qkNopeHeadDim = 0;
    int vHeadDim = 0;

    bool useQkNorm = false;
    int nNextnLayers = 0;

    // chatglm
    int gmaskTokenId = -1;
    int maskTokenId = -1;
    int bosTokenId = -1;

    bool isMoe() const { return nRoutedExperts > 0; }
    bool isLatent() const { return kvLoraRank > 0; }
    /// Values of a head that attention hands on.
    int valueDim() const { return isLatent() ? vHeadDim : headDim; }
    /// What one position of a latent cache holds: the latent and the rotated part of the key, for all heads.
    int latentDim() const { return kvLoraRank + rotaryDim; }
    int qDim() const { return nHeads * headDim; }
    int kvDim() const { return nKvHeads * headDim; }
};

/// The JSON object `config` of a described file, with "name" and "architecture" added; and back. `origin` names the
/// document in errors: FormatError for a missing, unknown or impossible field.
std::string modelConfigToJson(const ModelConfig& config);
ModelConfig modelConfigFromJson(const std::string& json, const std::string& origin);

/// Throws FormatError if sizes contradict each other or exceed what this program can hold.
void checkModelConfig(const ModelConfig& config, const std::string& origin);

}  // namespace dllama
