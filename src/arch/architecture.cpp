#include "arch/architecture.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "arch/families.hpp"
#include "base/errors.hpp"

namespace dllama {

Architecture makeArchitecture(const ModelConfig& config) {
    struct Family {
        const char* name;
        void (*describe)(Architecture&);
        const char* hiddenAct;
        bool moe;
        bool latent = false;
    };
    static constexpr Family kFamilies[] = {
        {"llama", describeLlama, "silu", false},
        {"qwen3", describeQwen3, "silu", false},
        {"qwen3moe", describeQwen3, "silu", true},
        {"glm", describeGlm, "silu", false},
        {"glm4", describeGlm4, "silu", false},
        {"glm4moe", describeGlm4Moe, "silu", true},
        {"glm4moelite", describeGlm4MoeLite, "silu", true, true},
        {"chatglm", describeChatglm, "gelu_tanh", false},
    };
    for (const Family& family : kFamilies) {
        if (config.architecture != family.name) continue;
        if (config.hiddenAct != family.hiddenAct)
            throw ConfigError("architecture {}: hidden_act {} is not supported ({})", family.name, config.hiddenAct,
                              family.hiddenAct);
        if (config.isMoe() != family.moe)
            throw ConfigError("architecture {}: {} routed experts", family.name, config.nRoutedExperts);
        if (config.isLatent() != family.latent)
            throw ConfigError("architecture {}: kv_lora_rank is {}", family.name, config.kvLoraRank);
        Architecture arch;
        arch.config = config;
        arch.maxPositions = config.maxPositions;
        family.describe(arch);
        if (arch.ropeParts == 2 && config.headDim % 4 != 0)
            throw ConfigError("architecture {}: head_dim {} is no multiple of 4", family.name, config.headDim);
        return arch;
    }
    throw ConfigError(
        "architecture {} is not supported (llama, qwen3, qwen3moe, glm, glm4, glm4moe, glm4moelite, chatglm)",
        config.architecture);
}

namespace {

/// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
/// (transformers, modeling_rope_utils, _compute_llama3_parameters)
double scaleLlama3(const RopeScaling& s, double frequency) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < s.originalMaxPositions / s.highFreqFactor) return frequency;
    if (wavelength > s.originalMaxPositions / s.lowFreqFactor) return frequency / s.factor;
    const double smooth =
        (s.originalMaxPositions / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
    return (1.0 - smooth) * frequency / s.factor + smooth * frequency;
}

/// YaRN (arXiv 2309.00071): pairs that turn more than betaFast times within the original context keep their frequency,
/// those that turn less than betaSlow times are divided by the factor, with a ramp over the pairs between.
double scaleYarn(const RopeScaling& s, double theta, int rotaryDim, int pair, double frequency) {
    const auto pairOfTurns = [&](double turns) {
        return rotaryDim * std::log(s.originalMaxPositions / (turns * 2.0 * std::numbers::pi)) /
               (2.0 * std::log(theta));
    };
    const double low = std::max(std::floor(pairOfTurns(s.betaFast)), 0.0);
    double high = std::min(std::ceil(pairOfTurns(s.betaSlow)), rotaryDim - 1.0);
    if (low == high) high += 0.001;
    const double ramp = std::clamp((pair - low) / (high - low), 0.0, 1.0);
    return frequency / s.factor * ramp + frequency * (1.0 - ramp);
}

}  // namespace

RopeTables makeRopeTables(const Architecture& arch, int nPositions) {
    const ModelConfig& c = arch.config;
    RopeTables tables;
    tables.rotaryDim = c.rotaryDim / arch.ropeParts;
    const int half = tables.rotaryDim / 2;
    const RopeScaling& scaling = c.ropeScaling;
    const double magnitude = scaling.type == RopeScaling::Type::Yarn ? scaling.attentionFactor : 1.0;
    tables.cos.resize(static_cast<size_t>(nPositions) * half);
    tables.sin.resize(tables.cos.size());
    for (int j = 0; j < half; j++) {
        double frequency = std::pow(c.ropeTheta, -2.0 * j / tables.rotaryDim);
        if (scaling.type == RopeScaling::Type::Llama3) frequency = scaleLlama3(scaling, frequency);
        if (scaling.type == RopeScaling::Type::Yarn)
            frequency = scaleYarn(scaling, c.ropeTheta, tables.rotaryDim, j, frequency);
        for (int p = 0; p < nPositions; p++) {
            tables.cos[static_cast<size_t>(p) * half + j] = static_cast<float>(magnitude * std::cos(p * frequency));
            tables.sin[static_cast<size_t>(p) * half + j] = static_cast<float>(magnitude * std::sin(p * frequency));
        }
    }
    return tables;
}

}  // namespace dllama
