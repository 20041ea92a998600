// Writes a model of a real one's shape with random weights, and a tokenizer for it.
//   make-synthetic-model <shape> <q40|q80|f16|f32> <folder> [layers]

#include <fmt/format.h>

#include <random>

#include "base/errors.hpp"
#include "format/model-file.hpp"
#include "format/tokenizer-file.hpp"
#include "synthetic-model.hpp"

using namespace dllama;

namespace {

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
    ModelConfig config = syntheticShape(argv[1]);
    const DType type = syntheticType(argv[2]);
    if (argc == 5) config.nLayers = std::stoi(argv[4]);
    config.name = fmt::format("synthetic-{}", argv[1]);
    config.eosTokenIds = {config.vocabSize - 1};
    const std::string base = fmt::format("{}/{}-{}", argv[3], argv[1], argv[2]);

    std::mt19937_64 random(1);
    writeModelFile(base + ".m", config, type, syntheticTensors(config, type),
                   [&](const TensorInfo& tensor) { return randomValues(tensor, tensor.rows * tensor.cols, random); });
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
