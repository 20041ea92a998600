#include <gtest/gtest.h>

#include <map>

#include "backend/reference-backend.hpp"
#include "base/errors.hpp"
#include "engine/sampler.hpp"
#include "engine/scheduler.hpp"
#include "model-under-test.hpp"
#include "tiny-model.hpp"

namespace dllama::test {
namespace {

// Sampler ------------------------------------------------------------------------------------------------------------

int draw(SamplingParams params, std::vector<float> logits, const std::vector<int>& history = {}) {
    return Sampler(params).sample(logits, history);
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
    EXPECT_EQ(draw({.temperature = 0.0f}, {1.0f, 3.0f, 3.0f, 2.0f}), 1);
}

TEST(SamplerTest, SameSeedSameTokens) {
    const std::vector<float> logits = {1.0f, 2.0f, 0.5f, 1.5f, -1.0f};
    Sampler a({.topP = 1.0f, .seed = 42}), b({.topP = 1.0f, .seed = 42}), c({.topP = 1.0f, .seed = 43});
    std::vector<int> fromA, fromB, fromC;
    for (int i = 0; i < 50; i++) {
        for (auto [sampler, tokens] : {std::pair(&a, &fromA), std::pair(&b, &fromB), std::pair(&c, &fromC)}) {
            std::vector<float> copy = logits;
            tokens->push_back(sampler->sample(copy, {}));
        }
    }
    EXPECT_EQ(fromA, fromB);
    EXPECT_NE(fromA, fromC);
}

TEST(SamplerTest, DrawsWithTheSoftmaxProbabilities) {
    // Probabilities 0.6, 0.3, 0.1.
    const std::vector<float> logits = {std::log(6.0f), std::log(3.0f), std::log(1.0f)};
    Sampler sampler({.temperature = 1.0f, .topP = 0.0f, .seed = 1});
    std::map<int, int> counts;
    for (int i = 0; i < 20000; i++) {
        std::vector<float> copy = logits;
        counts[sampler.sample(copy, {})]++;
    }
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts[0], 12000, 350);
    EXPECT_NEAR(counts[1], 6000, 325);
    EXPECT_NEAR(counts[2], 2000, 215);
}

TEST(SamplerTest, FiltersLeaveOnlyWhatTheyPromise) {
    const std::vector<float> logits = {std::log(5.0f), std::log(3.0f), std::log(1.5f), std::log(0.5f)};
    const auto reachable = [&](SamplingParams params) {
        params.temperature = 1.0f;
        std::map<int, int> counts;
        Sampler sampler(params);
        for (int i = 0; i < 2000; i++) {
            std::vector<float> copy = logits;
            counts[sampler.sample(copy, {})]++;
        }
        return counts.size();
    };
    EXPECT_EQ(reachable({.topP = 0.0f}), 4u);
    EXPECT_EQ(reachable({.topP = 0.45f}), 1u);  // 0.5 reaches it alone
    EXPECT_EQ(reachable({.topP = 0.75f}), 2u);
    EXPECT_EQ(reachable({.topP = 0.0f, .topK = 3}), 3u);
    EXPECT_EQ(reachable({.topP = 0.0f, .minP = 0.2f}), 3u);  // 0.5, 0.3, 0.15 reach a fifth of 0.5
}

TEST(SamplerTest, PenaltyLowersTokensSeenBefore) {
    EXPECT_EQ(draw({.temperature = 0.0f, .repetitionPenalty = 2.0f}, {4.0f, 3.0f}, {0, 0}), 1);
    EXPECT_EQ(draw({.temperature = 0.0f, .repetitionPenalty = 2.0f}, {-1.0f, -1.5f}, {0}), 1);
}

TEST(SamplerTest, RefusesNonsense) {
    EXPECT_THROW(Sampler({.temperature = -1.0f}), ConfigError);
    EXPECT_THROW(Sampler({.topP = 1.5f}), ConfigError);
    EXPECT_THROW(Sampler({.temperature = NAN}), ConfigError);
    EXPECT_THROW(draw({.temperature = 0.0f}, {NAN, NAN}), Error);
    EXPECT_THROW(draw({}, {1.0f, NAN}), Error);
}

/// What Backend::topLogits finds in `nParts` parts of the row.
std::vector<float> bestOf(const std::vector<float>& logits, int nParts, int k, float temperature) {
    const auto backend = makeReferenceBackend();
    std::vector<float> all;
    const int n = static_cast<int>(logits.size());
    for (int part = 0; part < nParts; part++) {
        const int begin = n * part / nParts, end = n * (part + 1) / nParts;
        Activations row = backend->allocateActivations(1, end - begin, false);
        Activations best = backend->allocateActivations(1, topLogitsCols(k), false);
        std::copy(logits.begin() + begin, logits.begin() + end, row.f32);
        StepInputs step;
        step.nOutputs = 1;
        step.outputTemperatures = &temperature;
        backend->topLogits(step, row, begin, k, best);
        all.insert(all.end(), best.f32, best.f32 + best.cols);
    }
    return all;
}

TEST(SamplerTest, TopLogitsDecideLikeWholeRows) {
    const std::vector<SamplingParams> all = {{.temperature = 0.0f},
                                             {.temperature = 0.8f, .topP = 0.9f},
                                             {.temperature = 1.0f, .topP = 0.5f},
                                             {.temperature = 1.5f, .topP = 1.0f},
                                             {.temperature = 1.0f, .topP = 0.0f, .topK = 5},
                                             {.temperature = 1.0f, .topP = 0.9f, .topK = 60},
                                             {.temperature = 1.0f, .topP = 1.0f, .minP = 0.05f},
                                             {.temperature = 1.0f, .topP = 0.8f, .minP = 0.01f}};
    std::mt19937 random(7);
    for (const float spread : {1.0f, 4.0f}) {
        std::normal_distribution<float> normal(0.0f, spread);
        for (const SamplingParams& params : all) {
            Sampler whole(params), best(params);
            const int k = Sampler::topNeeded(params);
            int decided = 0;
            for (int i = 0; i < 200; i++) {
                std::vector<float> logits(1000);
                for (float& logit : logits) logit = normal(random);
                logits[random() % 1000] = logits[3];  // equals
                const std::vector<float> parts = bestOf(logits, 1 + i % 5, k, params.temperature);
                std::optional<int> token = best.sampleTop(parts, k);
                decided += token.has_value();
                std::vector<float> copy = logits;
                if (!token) token = best.sample(copy, {});
                EXPECT_EQ(*token, whole.sample(logits, {}));
            }
            if (spread > 2.0f) {
                EXPECT_GT(decided, 150) << params.temperature << " " << params.topP;
            }
        }
    }
}

TEST(SamplerTest, TopLogitsKnowWhatTheyCannotDecide) {
    EXPECT_EQ(Sampler::topNeeded({.temperature = 0.0f, .repetitionPenalty = 1.1f}), 0);
    EXPECT_EQ(Sampler::topNeeded({.topK = kMaxTopLogits + 1}), 0);
    const std::vector<float> flat(5000, 1.0f);
    EXPECT_FALSE(Sampler({.temperature = 1.0f, .topP = 0.9f}).sampleTop(bestOf(flat, 2, kMaxTopLogits, 1.0f), 64));
    std::vector<float> broken(5000, 1.0f);
    broken[4999] = NAN;
    EXPECT_THROW(Sampler({.temperature = 0.0f}).sampleTop(bestOf(broken, 3, 1, 0.0f), 1), Error);
}

// Scheduler ----------------------------------------------------------------------------------------------------------

TEST(SchedulerTest, WritingSequencesComeFirst) {
    const std::vector<Pending> pending = {{100, 0}, {1, 0}, {1, 0}};
    EXPECT_EQ(schedule(pending, 32, 8), (std::vector<int>{30, 1, 1}));
}

TEST(SchedulerTest, PromptsFollowInOrderAndAreCut) {
    EXPECT_EQ(schedule(std::vector<Pending>{{20, 0}, {20, 0}, {5, 0}}, 32, 8), (std::vector<int>{20, 12, 0}));
}

TEST(SchedulerTest, IndivisiblePrefixesWaitForRoom) {
    EXPECT_EQ(schedule(std::vector<Pending>{{20, 0}, {20, 19}}, 32, 8), (std::vector<int>{20, 0}));
    EXPECT_EQ(schedule(std::vector<Pending>{{20, 19}}, 32, 8), (std::vector<int>{20}));
}

TEST(SchedulerTest, NoMoreFinishedPromptsThanRows) {
    EXPECT_EQ(schedule(std::vector<Pending>{{1, 0}, {1, 0}, {4, 0}}, 32, 1), (std::vector<int>{1, 0, 3}));
}

// Engine -------------------------------------------------------------------------------------------------------------

class EngineTest : public testing::Test {
  protected:
    EngineTest() {
        path_ = testing::TempDir() + "/engine-test.m";
        writeTinyModel(path_, tinyConfig("glm4"), DType::F32);
    }
    std::unique_ptr<ModelUnderTest> load(DecoderLimits limits) {
        return std::make_unique<ModelUnderTest>(
            path_, [](ThreadPool&) { return makeReferenceBackend(); }, 1, limits);
    }
    std::string path_;
};

TEST_F(EngineTest, ContinuingAConversationEqualsStartingAfresh) {
    const auto model = load({.maxTokens = 64});
    Engine& engine = *model->engine;
    const int sequence = engine.open(128);
    engine.start(sequence, {5, 9, 40}, {.temperature = 0.0f}, {6, {}});
    while (engine.running()) engine.step();
    std::vector<int> tokens = engine.tokens(sequence);
    tokens.insert(tokens.end(), {7, 8});
    engine.start(sequence, tokens, {.temperature = 0.0f}, {5, {}});
    const StepReport first = engine.step();
    EXPECT_EQ(first.nPrefillTokens, 3);  // the last answer token was never computed, and the two new ones
    while (engine.running()) engine.step();
    const std::vector<int> continued = engine.tokens(sequence);
    engine.close(sequence);
    const std::vector<int> fresh = model->greedy(tokens, 5);
    EXPECT_EQ(std::vector<int>(continued.end() - 5, continued.end()), fresh);
}

TEST_F(EngineTest, StopTokenEndsTheAnswer) {
    const auto model = load({.maxTokens = 64});
    const std::vector<int> free = model->greedy({5, 9, 40}, 8);
    Engine& engine = *model->engine;
    const int sequence = engine.open(64);
    engine.start(sequence, {5, 9, 40}, {.temperature = 0.0f}, {8, {free[3]}});
    std::vector<TokenEvent> events;
    while (engine.running())
        for (const TokenEvent& event : engine.step().events) events.push_back(event);
    const size_t expected = static_cast<size_t>(std::find(free.begin(), free.end(), free[3]) - free.begin()) + 1;
    ASSERT_EQ(events.size(), expected);
    EXPECT_EQ(events.back().finish, Finish::StopToken);
}

TEST_F(EngineTest, EndsAtTheContextAndGivesBlocksBack) {
    const auto model = load({.maxTokens = 64, .maxPositions = 40});
    Engine& engine = *model->engine;
    for (int round = 0; round < 10; round++) {
        const int sequence = engine.open(40);
        engine.start(sequence, {5, 9, 40}, {.temperature = 0.0f}, {});
        Finish finish = Finish::None;
        while (engine.running())
            for (const TokenEvent& event : engine.step().events) finish = event.finish;
        EXPECT_EQ(finish, Finish::Length);
        EXPECT_EQ(engine.tokens(sequence).size(), 40u);
        engine.close(sequence);
    }
    EXPECT_THROW(engine.open(41), ConfigError);
}

TEST_F(EngineTest, RefusesImpossiblePrompts) {
    const auto model = load({.maxTokens = 64, .maxPositions = 40});
    Engine& engine = *model->engine;
    const int sequence = engine.open(10);
    EXPECT_THROW(engine.start(sequence, {}, {}, {}), ConfigError);
    EXPECT_THROW(engine.start(sequence, {5, 320}, {}, {}), ConfigError);
    EXPECT_THROW(engine.start(sequence, {-1}, {}, {}), ConfigError);
    EXPECT_THROW(engine.start(sequence, std::vector<int>(10, 5), {}, {}), ConfigError);
    EXPECT_FALSE(engine.running());
}

/// A forward pass whose cluster loses a rank at chosen steps.
class FlakyForward final : public ForwardPass {
  public:
    FlakyForward(ForwardPass& real, bool logitsAreNear) : real_(real), logitsAreNear_(logitsAreNear) {}
    void forward(const Batch& batch, std::vector<float>& best) override {
        lose();
        real_.forward(batch, best);
    }
    void gatherLogits(std::vector<float>& logits) override {
        lose();
        real_.gatherLogits(logits);
    }
    bool logitsAreNear() const override { return logitsAreNear_; }
    void recover(const PeerLost&) override { recoveries++; }
    const DecoderLimits& limits() const override { return real_.limits(); }
    int recoveries = 0;

  private:
    void lose() {
        // At growing distances, so that an answer that begins anew is finished at last.
        if (++call_ < next_) return;
        next_ = call_ + distance_++;
        throw PeerLost(1, "rank 1 is gone");
    }
    ForwardPass& real_;
    const bool logitsAreNear_;
    int call_ = 0, next_ = 4, distance_ = 4;
};

TEST_F(EngineTest, ALostRankDoesNotChangeTheText) {
    const auto model = load({.maxTokens = 64});
    // Greedy, by whole rows, by the best logits with a fall back to whole rows now and then.
    const std::vector<SamplingParams> all = {{.temperature = 0.0f},
                                             {.temperature = 1.0f, .repetitionPenalty = 1.2f, .seed = 3},
                                             {.temperature = 1.0f, .topP = 0.6f, .seed = 3},
                                             {.temperature = 1.0f, .topP = 1.0f, .seed = 3}};
    for (const SamplingParams& sampling : all) {
        const auto answer = [&](ForwardPass& forward) {
            Engine engine(model->arch, model->embeddings, forward);
            const int sequence = engine.open(64);
            engine.start(sequence, {5, 9, 40}, sampling, {20, {}});
            while (engine.running()) engine.step();
            return engine.tokens(sequence);
        };
        const std::vector<int> undisturbed = answer(*model->forward);
        for (const bool near : {true, false}) {
            FlakyForward flaky(*model->forward, near);
            EXPECT_EQ(answer(flaky), undisturbed) << near << " " << sampling.topP;
            EXPECT_GT(flaky.recoveries, 3);
        }
    }
}

TEST_F(EngineTest, ScoresComeOnceEachWhateverIsLost) {
    const auto model = load({.maxTokens = 4});
    const std::vector<int> tokens = {5, 9, 40, 7, 11, 300, 2, 8, 13, 14, 15, 16, 17};
    const auto scores = [&](ForwardPass& forward) {
        std::vector<std::vector<float>> rows;
        Engine engine(model->arch, model->embeddings, forward);
        engine.score(tokens, 2, [&](int index, std::span<const float> logits) {
            EXPECT_EQ(index, static_cast<int>(rows.size()) + 2);
            rows.emplace_back(logits.begin(), logits.end());
        });
        return rows;
    };
    FlakyForward flaky(*model->forward, true);
    EXPECT_EQ(scores(flaky), scores(*model->forward));
    EXPECT_GT(flaky.recoveries, 0);
}

TEST(EngineLegacy, RunsEveryFamilyAndType) {
    for (const char* architecture : {"llama", "qwen3", "qwen3moe", "glm", "glm4", "glm4moe", "chatglm"}) {
        for (DType type : {DType::F32, DType::F16, DType::BF16, DType::Q80, DType::Q40}) {
            const std::string path = testing::TempDir() + "/engine-types.m";
            writeTinyModel(path, tinyConfig(architecture), type);
            ModelUnderTest model(path, [](ThreadPool&) { return makeReferenceBackend(); }, 1, {.maxTokens = 64});
            const std::vector<int> prompt = {9, 12, 301, 304, 5};
            EXPECT_EQ(model.greedy(prompt, 4).size(), 4u) << architecture << " " << dtypeName(type);
        }
    }
}

}  // namespace
}  // namespace dllama::test
