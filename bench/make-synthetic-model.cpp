// Writes a model of a real one's shape with random weights, and a tokenizer for it: what speed is measured on where
// no checkpoint can be downloaded.
//   make-synthetic-model <shape> <q40|q80|f16|f32> <folder> [layers]

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <random>

#include "arch/architecture.hpp"
#include "base/errors.hpp"
#include "format/legacy-model.hpp"
#include "format/model-file.hpp"
#include "format/tokenizer-file.hpp"
#include "tensor/blocks.hpp"
#include "tensor/half.hpp"

using namespace dllama;

namespace {

ModelConfig llama(int dim, int layers, int heads, int kvHeads, int ffn, int vocab) {
    ModelConfig c;
    c.architecture = "llama";
    c.hiddenSize = dim;
    c.nLayers = layers;
    c.nHeads = heads;
    c.nKvHeads = kvHeads;
    c.headDim = c.rotaryDim = dim / heads;
    c.intermediateSize = ffn;
    c.vocabSize = vocab;
    c.maxPositions = 8192;
    return c;
}

ModelConfig glm4(int dim, int layers, int heads, int ffn) {
    ModelConfig c = llama(dim, layers, heads, 2, ffn, 151552);
    c.architecture = "glm4";
    c.headDim = 128;
    c.rotaryDim = 64;
    c.maxPositions = 32768;
    return c;
}

ModelConfig glm4moe(int layers) {
    ModelConfig c = glm4(4096, layers, 96, 10944);
    c.architecture = "glm4moe";
    c.nKvHeads = 8;
    c.attentionBias = true;
    c.ropeTheta = 1e6;
    c.nRoutedExperts = 128;
    c.nExpertsPerToken = 8;
    c.nSharedExperts = 1;
    c.moeIntermediateSize = 1408;
    c.firstMoeLayer = 1;
    c.scoringFunc = "sigmoid";
    return c;
}

ModelConfig shape(const std::string& name) {
    const std::map<std::string, ModelConfig> shapes = {
        {"llama-1.1b", llama(2048, 22, 32, 4, 5632, 32000)},
        {"llama-3b", llama(3072, 28, 24, 8, 8192, 32000)},
        {"llama-8b", llama(4096, 32, 32, 8, 14336, 128256)},
        {"glm-4-9b", glm4(4096, 40, 32, 13696)},
        {"glm-4-32b", glm4(6144, 61, 48, 23040)},
        {"intellect-3", glm4moe(46)},
    };
    const auto found = shapes.find(name);
    if (found != shapes.end()) return found->second;
    std::string known;
    for (const auto& [key, config] : shapes) known += " " + key;
    throw ConfigError("shape {} is not known:{}", name, known);
}

/// Random values of about 1 / sqrt(columns), so that activations keep their size from layer to layer. Quantised blocks
/// are made directly: random codes and one scale.
std::vector<std::byte> randomTensor(const TensorInfo& t, std::mt19937_64& random) {
    std::vector<std::byte> bytes(t.bytes());
    const float deviation = t.rows > 1 ? 1.0f / std::sqrt(static_cast<float>(t.cols)) : 0.02f;
    if (isQuantized(t.dtype)) {
        for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
            const uint64_t value = random();
            std::memcpy(bytes.data() + i, &value, 8);
        }
        // Uniform codes deviate by 4.6 steps in Q40 and by 74 in Q80.
        const uint16_t scale = f32ToF16(deviation / (t.dtype == DType::Q40 ? 4.6f : 74.0f));
        for (size_t at = 0; at < bytes.size(); at += blockBytes(t.dtype)) std::memcpy(bytes.data() + at, &scale, 2);
        return bytes;
    }
    const bool isNorm = t.name.find("norm.weight") != std::string::npos;
    std::vector<float> values(static_cast<size_t>(t.rows * t.cols));
    for (float& value : values) {
        const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
        value = (isNorm ? 1.0f : 0.0f) + deviation * static_cast<float>(3.4641 * (uniform - 0.5));
    }
    quantize(t.dtype, values.data(), bytes.data(), t.rows * t.cols);
    return bytes;
}

std::vector<TensorInfo> tensorsOf(const ModelConfig& config, DType type) {
    if (legacyHeader(config, type)) return legacyTensors(config, type);
    std::vector<TensorInfo> tensors;
    for (const TensorDecl& decl : declareTensors(makeArchitecture(config)))
        tensors.push_back({decl.name, decl.isWeight ? type : DType::F32, decl.rows, decl.cols});
    return tensors;
}

/// Bytes as tokens and made-up words up to the model's vocabulary.
TokenizerFile syntheticTokenizer(int vocabSize) {
    TokenizerFile file;
    for (int i = 0; i < 256; i++) file.vocab.push_back(std::string(1, static_cast<char>(i)));
    for (int i = 256; i < vocabSize - 2; i++) file.vocab.push_back(fmt::format("<word{}>", i));
    file.vocab.push_back("<|begin|>");
    file.vocab.push_back("<|end|>");
    for (int i = 0; i < vocabSize; i++) file.scores.push_back(-static_cast<float>(i));
    file.bosId = vocabSize - 2;
    file.eosIds = {vocabSize - 1};
    file.patterns = {"[\\s\\S]"};
    file.special = {{vocabSize - 2, "<|begin|>", true}, {vocabSize - 1, "<|end|>", true}};
    return file;
}

int run(int argc, char** argv) {
    if (argc < 4 || argc > 5)
        throw ConfigError("usage: make-synthetic-model <shape> <q40|q80|f16|f32> <folder> [layers]");
    ModelConfig config = shape(argv[1]);
    std::string typeName = argv[2];
    for (char& c : typeName) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const auto type = dtypeFromName(typeName);
    if (!type) throw ConfigError("weight type {} is not known", argv[2]);
    if (argc == 5) config.nLayers = std::stoi(argv[4]);
    config.name = fmt::format("synthetic-{}", argv[1]);
    config.eosTokenIds = {config.vocabSize - 1};
    const std::string base = fmt::format("{}/{}-{}", argv[3], argv[1], argv[2]);

    std::mt19937_64 random(1);
    writeModelFile(base + ".m", config, *type, tensorsOf(config, *type),
                   [&](const TensorInfo& tensor) { return randomTensor(tensor, random); });
    writeTokenizerFile(base + ".t", syntheticTokenizer(config.vocabSize));
    fmt::print("{}.m\n{}.t\n", base, base);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 1;
    }
}
