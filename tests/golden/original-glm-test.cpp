// The original GLM: that its own rules are what the references need, and that any number of ranks keeps them.

#include <gtest/gtest.h>

#include <cmath>

#include "golden-case.hpp"
#include "local-cluster.hpp"
#include "model-under-test.hpp"

namespace dllama::test {
namespace {

std::string modelPath(const std::string& name) {
    return std::string(DLLAMA_GOLDEN_MODELS) + "/" + name + "-f32.m";
}
GoldenCase goldenCase(const std::string& name) {
    return GoldenCase(DLLAMA_TEST_DATA "/golden/" + name);
}

/// Largest difference from the recorded logits, over all prompts. `Model` has logits(tokens).
template <typename Model>
double largestDifference(Model& model, const GoldenCase& golden) {
    double largest = 0.0;
    for (const GoldenPrompt& prompt : golden.prompts) {
        const std::vector<float> logits = model.logits(prompt.prompt);
        for (size_t t = 0; t < prompt.prompt.size(); t++) {
            const std::span<const float> expected = golden.row(prompt, static_cast<int>(t));
            const auto row = std::span<const float>(logits).subspan(t * golden.vocab, golden.vocab);
            if (!expected.empty()) largest = std::max(largest, dllama::test::largestDifference(row, expected));
        }
    }
    return largest;
}

/// Prompts whose greedy answer is the recorded one.
template <typename Model>
size_t equalAnswers(Model& model, const GoldenCase& golden) {
    size_t equal = 0;
    for (const GoldenPrompt& prompt : golden.prompts)
        equal += model.greedy(prompt.prompt, static_cast<int>(prompt.greedy.size())) == prompt.greedy;
    return equal;
}

/// Changes each batch on its way to the decoder.
class AlteredForward final : public ForwardPass {
  public:
    using Alter = std::function<void(Batch&)>;
    AlteredForward(Decoder& decoder, Alter alter) : decoder_(decoder), alter_(std::move(alter)) {}
    void forward(const Batch& batch, std::vector<float>& best) override {
        Batch altered = batch;
        if (alter_) alter_(altered);
        decoder_.forward(altered, best);
    }
    void gatherLogits(std::vector<float>& logits) override { decoder_.gatherLogits(logits); }
    bool logitsAreNear() const override { return decoder_.logitsAreNear(); }
    const DecoderLimits& limits() const override { return decoder_.limits(); }

  private:
    Decoder& decoder_;
    Alter alter_;
};

/// A rule of the original GLM, broken on purpose: in the architecture or in the batches.
struct Ablation {
    std::string name;
    std::function<void(Architecture&)> change;
    AlteredForward::Alter alter;
    bool logitsOfPrompt;  // the rule matters before the answer begins
};

std::vector<Ablation> ablations() {
    const auto second = [](Batch& b) { return b.ropePositions.begin() + b.nTokens; };
    return {
        {"causal mask",
         {},
         [](Batch& b) {
             for (int t = 0; t < b.nTokens; t++) b.contextLengths[t] = b.positions[t] + 1;
         },
         true},
        {"one-dimensional RoPE", [](Architecture& arch) { arch.ropeParts = 1; }, {}, true},
        {"both halves of a head by the place",
         {},
         [=](Batch& b) {
             std::copy(b.positions.begin(), b.positions.end(), b.ropePositions.begin());
             std::copy(b.positions.begin(), b.positions.end(), second(b));
         },
         true},
        {"places of the answer go on behind [gMASK]",
         {},
         [](Batch& b) { std::copy(b.positions.begin(), b.positions.end(), b.ropePositions.begin()); },
         true},
        {"places in the answer start from 0",
         {},
         [=](Batch& b) {
             for (auto at = second(b); at != b.ropePositions.end(); at++) *at = std::max(0, *at - 1);
         },
         true},
        {"places in the answer do not count",
         {},
         [=](Batch& b) {
             for (auto at = second(b); at != b.ropePositions.end(); at++) *at = std::min(1, *at);
         },
         false},
        {"residual as in other models", [](Architecture& arch) { arch.residualAlpha = 0.0f; }, {}, true},
        {"residual that follows the number of layers",
         [](Architecture& arch) { arch.residualAlpha = std::sqrt(2.0f * static_cast<float>(arch.config.nLayers)); },
         {},
         true},
    };
}

/// The original GLM, with `ablation` in force.
class OriginalGlm : public ModelUnderTest {
  public:
    explicit OriginalGlm(const Ablation& ablation)
        : ModelUnderTest(modelPath("chatglm-6b"), cpuBackend, 1, {.kvType = DType::F32}) {
        const DecoderLimits limits = decoder->limits();
        if (ablation.change) ablation.change(arch);
        engine.reset();
        decoder = std::make_unique<Decoder>(arch, plan, 0, weights, *backend, alone, limits);
        forward = std::make_unique<AlteredForward>(*decoder, ablation.alter);
        engine = std::make_unique<Engine>(arch, embeddings, *forward);
    }
};

TEST(OriginalGlmRules, AllKeptGiveTheReference) {
    const GoldenCase golden = goldenCase("chatglm-6b");
    OriginalGlm model({});
    EXPECT_LE(largestDifference(model, golden), kLogitTolerance);
    EXPECT_EQ(equalAnswers(model, golden), golden.prompts.size());
}

TEST(OriginalGlmRules, EachOneBrokenGivesSomethingElse) {
    const GoldenCase golden = goldenCase("chatglm-6b");
    for (const Ablation& ablation : ablations()) {
        SCOPED_TRACE(ablation.name);
        OriginalGlm model(ablation);
        const double difference = largestDifference(model, golden);
        const size_t equal = equalAnswers(model, golden);
        std::printf("%s: largest difference of a logit %.2e, %zu of %zu answers\n", ablation.name.c_str(), difference,
                    equal, golden.prompts.size());
        if (ablation.logitsOfPrompt) {
            EXPECT_GT(difference, 1000 * kLogitTolerance);
        }
        EXPECT_LT(equal, golden.prompts.size());
    }
}

class OriginalCheckpoints : public testing::TestWithParam<const char*> {};

TEST_P(OriginalCheckpoints, OneTwoAndThreeRanksGiveTheReference) {
    const GoldenCase golden = goldenCase(GetParam());
    ClusterOptions options;
    options.wire = Wire::F32;
    std::vector<std::unique_ptr<WorkerThread>> workers;
    for (int nRanks = 1; nRanks <= 3; nRanks++) {
        SCOPED_TRACE(std::to_string(nRanks) + " ranks");
        RootUnderTest root(modelPath(GetParam()), options);
        ASSERT_EQ(root.forward->plan().nRanks(), nRanks);
        const double difference = largestDifference(root, golden);
        EXPECT_LE(difference, kLogitTolerance);
        EXPECT_EQ(equalAnswers(root, golden), golden.prompts.size());
        std::printf("%s on %d ranks: largest difference of a logit %.2e\n", GetParam(), nRanks, difference);
        workers.push_back(std::make_unique<WorkerThread>());
        options.workers.push_back(workers.back()->address());
    }
}

INSTANTIATE_TEST_SUITE_P(Models, OriginalCheckpoints, testing::Values("chatglm-6b", "glm-4-9b-chat"),
                         [](const auto& info) { return info.param[0] == 'c' ? "chatglm6b" : "glm49bChat"; });

}  // namespace
}  // namespace dllama::test
