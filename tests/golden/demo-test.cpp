// The embedded demo model: its tokenizer against recorded prompts, and what Q40 costs on held-out text.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/cpu-features.hpp"
#include "cpu/cpu-backend.hpp"
#include "format/tokenizer-file.hpp"
#include "model-under-test.hpp"
#include "text/tokenizer.hpp"

namespace dllama::test {
namespace {

constexpr double kExpectedPerplexity = 26.82;

nlohmann::json readJson(const std::string& name) {
    std::ifstream file(std::string(DLLAMA_TEST_DATA "/demo/") + name);
    return nlohmann::json::parse(file);
}

TEST(Demo, TokenizerEncodesTheRecordedPrompts) {
    const Tokenizer tokenizer(readTokenizerFile(DLLAMA_MODELS "/demo/demo.t"));
    for (const auto& item : readJson("golden.json")) {
        const std::string text = item.at("text");
        EXPECT_EQ(tokenizer.encode(text, SpecialTokens::Parse, false), item.at("prompt").get<std::vector<int>>())
            << text;
    }
}

TEST(Demo, TokenizerDecodesTheRecordedAnswers) {
    const Tokenizer tokenizer(readTokenizerFile(DLLAMA_MODELS "/demo/demo.t"));
    for (const auto& item : readJson("golden.json")) {
        std::string text;
        for (const int id : item.at("greedy").get<std::vector<int>>()) text += tokenizer.piece(id);
        EXPECT_EQ(text, item.at("greedy_text").get<std::string>());
    }
}

// Over all chunks the recorded perplexity is 27.17 in F32, and Q40 costs 1 %: a change of a kernel must not make it
// worse. Instruction sets round activations differently: 26.74 with AVX2, 26.86 with the plain kernels.
TEST(Demo, PerplexityOfHeldOutText) {
    const nlohmann::json heldOut = readJson("heldout.json");
    const std::vector<int> ids = heldOut.at("ids");
    const size_t chunk = heldOut.at("chunk");
    ModelUnderTest model(DLLAMA_MODELS "/demo/demo-q40.m",
                         [](ThreadPool& pool) { return makeCpuBackend(pool, chooseIsa()); }, 2,
                         {.maxTokens = 256, .maxOutputs = 256});
    double sum = 0.0;
    size_t n = 0;
    // Every second chunk: half the time, and far less spread than the tolerance.
    for (size_t begin = 0; begin + chunk <= ids.size(); begin += 2 * chunk) {
        const std::span<const int> piece = std::span(ids).subspan(begin, chunk);
        model.engine->score(piece, 0, [&](int i, std::span<const float> logits) {
            if (i + 1 == static_cast<int>(chunk)) return;
            const float largest = *std::max_element(logits.begin(), logits.end());
            double total = 0.0;
            for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
            sum -= logits[piece[i + 1]] - largest - std::log(total);
            n++;
        });
    }
    const double perplexity = std::exp(sum / static_cast<double>(n));
    std::printf("perplexity of %zu held-out tokens in Q40: %.3f\n", n, perplexity);
    EXPECT_NEAR(perplexity, kExpectedPerplexity, 0.006 * kExpectedPerplexity);
}

}  // namespace
}  // namespace dllama::test
