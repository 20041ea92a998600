#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace dllama::test {

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

inline double largestDifference(std::span<const float> a, std::span<const float> b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
        largest = difference >= largest ? difference : std::isnan(difference) ? 1e30 : largest;
    }
    return largest;
}

/// Greedy tokens must agree as long as each margin exceeds `smallest`; behind a token that was allowed to differ the
/// two texts are different texts.
inline void expectGreedy(const std::vector<int>& tokens, const GoldenPrompt& golden, double smallest) {
    for (size_t i = 0; i < tokens.size() && i < golden.greedy.size(); i++) {
        if (tokens[i] == golden.greedy[i]) continue;
        EXPECT_LE(golden.margin[i], smallest)
            << "token " << i << " is " << tokens[i] << ", reference " << golden.greedy[i];
        return;
    }
}

}  // namespace dllama::test
