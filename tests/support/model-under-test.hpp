#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "format/model-file.hpp"
#include "model/decoder.hpp"

namespace dllama::test {

using BackendFactory = std::function<std::unique_ptr<Backend>(ThreadPool&)>;

/// A model file on one rank, ready to run, with limits that tests choose.
class ModelUnderTest {
  public:
    ModelUnderTest(const std::string& path, const BackendFactory& makeBackend, int nThreads, DecoderLimits limits)
        : file(path),
          arch(makeArchitecture(file.config())),
          pool(nThreads),
          backend(makeBackend(pool)),
          plan(makeShardPlan(arch, {NodeSpec{}})),
          embeddings(file) {
        checkTensors(arch, file, path);
        if (limits.maxPositions == 0) limits.maxPositions = arch.maxPositions;
        if (arch.prefixMask) limits.maxTokens = limits.maxOutputs = limits.maxPositions;
        limits.nKvBlocks = nSequences * ((limits.maxPositions + kKvBlockPositions - 1) / kKvBlockPositions);
        weights = loadWeights(arch, plan, 0, file, *backend, pool, {});
        decoder = std::make_unique<Decoder>(arch, plan, 0, weights, *backend, alone, limits);
        forward = std::make_unique<LocalForward>(*decoder);
        engine = std::make_unique<Engine>(arch, embeddings, *forward);
    }

    /// Logits of every token of a prompt, (nTokens, vocab size).
    std::vector<float> logits(const std::vector<int>& tokens) {
        std::vector<float> all;
        engine->score(tokens, 0,
                      [&](int, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
        return all;
    }

    std::vector<int> greedy(const std::vector<int>& prompt, int n) {
        return answer(*engine, {prompt, {.temperature = 0.0f}, {n, {}}});
    }

    static constexpr int nSequences = 4;
    ModelFile file;
    Architecture arch;
    ThreadPool pool;
    std::unique_ptr<Backend> backend;
    ShardPlan plan;
    EmbeddingTable embeddings;
    RankWeights weights;
    SingleRank alone;
    std::unique_ptr<Decoder> decoder;
    std::unique_ptr<ForwardPass> forward;
    std::unique_ptr<Engine> engine;
};

}  // namespace dllama::test
