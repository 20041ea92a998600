// Sampling parameters at the ends of their ranges, and logits as large as numbers get.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "backend/backend.hpp"
#include "base/errors.hpp"
#include "engine/sampler.hpp"

namespace dllama {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();
/// The least that a flag can name, and what division by overflows.
constexpr float kTemperatures[] = {std::numeric_limits<float>::denorm_min(), 1e-44f, 1e-38f, 1e-30f, 1e-7f};

/// What Backend::topLogits tells of a row of few tokens, of which all are told: largest, a sum that nobody needs,
/// values and ids.
std::vector<float> topOf(const std::vector<float>& logits) {
    std::vector<float> part(static_cast<size_t>(topLogitsCols(kMaxTopLogits)), -1.0f);
    std::vector<int> order(logits.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    part[0] = logits[order[0]];
    for (size_t i = 0; i < std::min<size_t>(order.size(), kMaxTopLogits); i++) {
        part[2 + i] = logits[order[i]];
        part[2 + kMaxTopLogits + i] = static_cast<float>(order[i]);
    }
    return part;
}

/// The token drawn of whole rows and of the top logits, which must agree.
int drawn(SamplingParams params, const std::vector<float>& logits, uint64_t seed) {
    params.seed = seed;
    std::vector<float> copy = logits;
    const int token = Sampler(params).sample(copy, {});
    const std::vector<float> top = topOf(logits);
    const std::optional<int> fromTop = Sampler(params).sampleTop(top, kMaxTopLogits);
    EXPECT_TRUE(fromTop.has_value());
    EXPECT_EQ(fromTop.value_or(-1), token);
    return token;
}

TEST(SamplerExtremes, TinyTemperaturesTakeTheLikeliest) {
    const std::vector<std::vector<float>> rows = {{0.5f, 2.0f, 1.99f, -3.0f},
                                                  {-kMost, kMost, 0.0f, 1.0f},
                                                  {-kMost, -1e38f, -2e38f, -3e38f},
                                                  {-kInfinity, 7.0f, -kInfinity, 6.5f}};
    for (const float temperature : kTemperatures)
        for (const auto& logits : rows)
            for (uint64_t seed = 0; seed < 20; seed++)
                EXPECT_EQ(drawn({.temperature = temperature}, logits, seed), 1) << temperature;
}

TEST(SamplerExtremes, EqualLogitsStayEquallyLikely) {
    for (const float temperature : {kTemperatures[0], 1e-38f, 1.0f, 100.0f}) {
        int nFirst = 0;
        for (uint64_t seed = 0; seed < 400; seed++) {
            const int token = drawn({.temperature = temperature, .topP = 1.0f}, {-kMost, 5.0f, 5.0f}, seed);
            ASSERT_GE(token, 1) << temperature;
            nFirst += token == 1;
        }
        // Five standard deviations of 400 fair draws.
        EXPECT_NEAR(nFirst, 200, 50) << temperature;
    }
}

TEST(SamplerExtremes, FiltersAtTheirEndsLeaveTheLikeliest) {
    const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 0.0f};
    constexpr float kLeast = std::numeric_limits<float>::denorm_min();
    for (const float temperature : {kTemperatures[0], 0.8f, 100.0f})
        for (const SamplingParams& params :
             {SamplingParams{.topP = kLeast}, SamplingParams{.topK = 1}, SamplingParams{.minP = 1.0f}})
            for (uint64_t seed = 0; seed < 20; seed++) {
                SamplingParams p = params;
                p.temperature = temperature;
                EXPECT_EQ(drawn(p, logits, seed), 1) << temperature;
            }
}

TEST(SamplerExtremes, PenaltiesOfAnySizeKeepToTheVocabulary) {
    for (const float penalty : {0.02f, 100.0f})
        for (uint64_t seed = 0; seed < 20; seed++) {
            std::vector<float> logits = {1e30f, -1e30f, 1.0f, 0.0f};
            const std::vector<int> history = {0, 1, 1, 3};
            const int token =
                Sampler({.temperature = 1e-38f, .repetitionPenalty = penalty, .seed = seed}).sample(logits, history);
            EXPECT_EQ(token, 0) << penalty;
        }
}

}  // namespace

TEST(SamplerExtremes, LimitsAreAllowedAndWhatIsBeyondIsNot) {
    for (const float penalty : {0.01f, 100.0f}) checkSamplingParams({.repetitionPenalty = penalty});
    EXPECT_THROW(checkSamplingParams({.repetitionPenalty = 0.0099f}), ConfigError);
    EXPECT_THROW(checkSamplingParams({.repetitionPenalty = 100.1f}), ConfigError);
}

}  // namespace dllama
