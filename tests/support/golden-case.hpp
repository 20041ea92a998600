#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace dllama::test {

/// Largest difference of a logit from the recorded one: float32 against float32 with other orders of summation. Seen:
/// up to 2.3e-5 (Solar-Open), 1e-5 with most models. The KV cache must be F32, as it is by default for
/// F32 weights: in F16 it alone moves these logits by up to 0.003, and experts with it.
constexpr double kLogitTolerance = 3e-5;
/// transformers computes the two norms of latent attention with an eps of 1e-6 whatever the config says; we, as vLLM,
/// SGLang and llama.cpp do, with the config's 1e-5. Seen: up to 2e-4.
constexpr double kLatentLogitTolerance = 1e-3;
inline double logitTolerance(bool latentAttention) {
    return latentAttention ? kLatentLogitTolerance : kLogitTolerance;
}

/// Reference results of a tiny model: tests/data/golden/<name>/golden.json and logits.f32.
struct GoldenPrompt {
    std::vector<int> prompt;
    int firstRow = 0;
    int nRows = 0;
    size_t offset = 0;  // floats into logits.f32
    std::vector<int> greedy;
    std::vector<double> margin;  // of each greedy token over the runner-up
};

struct GoldenCase {
    int vocab = 0;
    std::vector<GoldenPrompt> prompts;
    std::vector<float> logits;

    explicit GoldenCase(const std::string& folder) {
        std::ifstream file(folder + "/golden.json");
        const nlohmann::json document = nlohmann::json::parse(file);
        for (const auto& item : document.at("cases")) {
            vocab = item.at("vocab");
            prompts.push_back({item.at("prompt"), item.at("logits_first_row"), item.at("logits_rows"),
                               item.at("offset"), item.at("greedy"), item.at("greedy_margin")});
        }
        std::ifstream binary(folder + "/logits.f32", std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(binary), {}};
        logits.resize(bytes.size() / sizeof(float));
        std::copy_n(bytes.data(), bytes.size(), reinterpret_cast<char*>(logits.data()));
    }

    /// The reference row of token `position` of `prompt`, or empty if it was not recorded.
    std::span<const float> row(const GoldenPrompt& prompt, int position) const {
        const int index = position - prompt.firstRow;
        if (index < 0 || index >= prompt.nRows) return {};
        return std::span(logits).subspan(prompt.offset + static_cast<size_t>(index) * vocab, vocab);
    }
};

/// Of two rows; a NaN counts as 1e30.
inline double largestDifference(std::span<const float> a, std::span<const float> b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
        largest = difference >= largest ? difference : std::isnan(difference) ? 1e30 : largest;
    }
    return largest;
}

/// The recorded tokens, all of them: each recorded margin is wider than the tolerance lets two logits move.
inline void expectGreedy(const std::vector<int>& tokens, const GoldenPrompt& golden,
                         double tolerance = kLogitTolerance) {
    ASSERT_FALSE(golden.greedy.empty());
    ASSERT_EQ(golden.margin.size(), golden.greedy.size());
    for (size_t i = 0; i < golden.margin.size(); i++)
        EXPECT_GT(golden.margin[i], 2 * tolerance) << "the record of token " << i;
    EXPECT_EQ(tokens, golden.greedy);
}

}  // namespace dllama::test
