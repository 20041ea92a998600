#include <gtest/gtest.h>

#include <map>

#include "backend/reference-backend.hpp"
#include "base/errors.hpp"
#include "engine/prefill-policy.hpp"
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

TEST(SamplerTest, PresenceAndFrequencyCountTheAnswerAlone) {
    const std::vector<int> history = {0, 0, 1, 2, 2};  // a prompt of two tokens, an answer of three
    const auto greedy = [&](SamplingParams params, std::vector<float> logits) {
        params.temperature = 0.0f;
        return Sampler(params, 2).sample(logits, history);
    };
    EXPECT_EQ(greedy({.presencePenalty = 1.0f}, {1.0f, 1.9f, 1.8f}), 0);
    EXPECT_EQ(greedy({.presencePenalty = 0.5f}, {1.0f, 1.9f, 1.8f}), 1);
    EXPECT_EQ(greedy({.frequencyPenalty = 0.5f}, {1.0f, 1.6f, 1.9f}), 1);
    EXPECT_EQ(greedy({.logitBias = {{1, -5.0f}, {2, 1.0f}}}, {1.0f, 3.0f, 0.5f}), 2);
    // Token by token as all at once.
    Sampler sampler({.temperature = 0.0f, .frequencyPenalty = 1.0f});
    std::vector<int> text;
    for (int i = 0; i < 6; i++) {
        std::vector<float> logits = {2.0f, 1.5f, 1.4f};
        text.push_back(sampler.sample(logits, text));
    }
    EXPECT_EQ(text, (std::vector<int>{0, 1, 2, 0, 1, 2}));
}

TEST(SamplerTest, DrawsOnlyWhatAMaskAllows) {
    const std::vector<uint32_t> mask = {0b01010};
    std::vector<float> logits = {5.0f, 1.0f, 4.0f, 2.0f, 6.0f};
    EXPECT_EQ(Sampler({.temperature = 0.0f}).sample(logits, {}, mask), 3);
    Sampler sampler({.temperature = 2.0f, .topP = 1.0f, .seed = 1});
    std::map<int, int> counts;
    for (int i = 0; i < 500; i++) counts[sampler.sample(logits, {}, mask)]++;
    EXPECT_EQ(counts.size(), 2u);
    EXPECT_GT(counts[1], 50);
    EXPECT_GT(counts[3], counts[1]);
}

TEST(SamplerTest, LogProbabilitiesAreThoseOfTheSoftmax) {
    const std::vector<float> logits = {std::log(1.0f), std::log(6.0f), std::log(3.0f)};
    const LogProbabilities found = logProbabilities(logits, 0, 2);
    EXPECT_NEAR(found.ofToken, std::log(0.1f), 1e-6);
    ASSERT_EQ(found.top.size(), 2u);
    EXPECT_EQ(found.top[0].first, 1);
    EXPECT_NEAR(found.top[0].second, std::log(0.6f), 1e-6);
    EXPECT_EQ(found.top[1].first, 2);
    EXPECT_EQ(logProbabilities(logits, 0, 20).top.size(), 3u);
}

TEST(SamplerTest, RefusesNonsense) {
    EXPECT_THROW(Sampler({.temperature = -1.0f}), ConfigError);
    EXPECT_THROW(Sampler({.topP = 1.5f}), ConfigError);
    EXPECT_THROW(Sampler({.temperature = NAN}), ConfigError);
    EXPECT_THROW(Sampler({.presencePenalty = 3.0f}), ConfigError);
    EXPECT_THROW(Sampler({.logitBias = {{1, 200.0f}}}), ConfigError);
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

TEST(SamplerTest, TopLogitsDecideMaskedGreedyTokens) {
    EXPECT_EQ(Sampler::topNeeded({.temperature = 0.0f}, true), kMaxTopLogits);
    EXPECT_EQ(Sampler::topNeeded({.temperature = 1.0f}, true), 0);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    int decided = 0;
    for (int i = 0; i < 100; i++) {
        std::vector<float> logits(1000);
        for (float& logit : logits) logit = normal(random);
        std::vector<uint32_t> mask(32);
        for (int bit = 0; bit < (i % 2 == 0 ? 40 : 4); bit++) mask[random() % 31] |= 1u << (random() % 32);
        Sampler sampler({.temperature = 0.0f});
        const std::optional<int> token = sampler.sampleTop(bestOf(logits, 3, kMaxTopLogits, 0.0f), kMaxTopLogits, mask);
        decided += token.has_value();
        if (token) {
            EXPECT_EQ(*token, sampler.sample(logits, {}, mask));
        }
    }
    EXPECT_GT(decided, 50);
    EXPECT_LT(decided, 100);
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

constexpr Budget kRoom{.maxTokens = 32, .maxOutputs = 8, .nFreeBlocks = 1000};

TEST(SchedulerTest, DecodingSequencesComeFirst) {
    const std::vector<Pending> pending = {
        {.nUncached = 100}, {.nUncached = 1, .decoding = true}, {.nUncached = 3, .decoding = true}};
    EXPECT_EQ(schedule(pending, kRoom).counts, (std::vector<int>{28, 1, 3}));
    // A prompt whose last token is left is a prompt all the same.
    EXPECT_EQ(schedule(std::vector<Pending>{{.nUncached = 1}, {.nUncached = 40, .decoding = true}}, kRoom).counts,
              (std::vector<int>{0, 32}));
}

TEST(SchedulerTest, PromptsFollowInOrderAndAreCut) {
    EXPECT_EQ(schedule(std::vector<Pending>{{20}, {20}, {5}}, kRoom).counts, (std::vector<int>{20, 12, 0}));
}

TEST(SchedulerTest, IndivisiblePrefixesWaitForRoom) {
    EXPECT_EQ(schedule(std::vector<Pending>{{20}, {20, 19}}, kRoom).counts, (std::vector<int>{20, 0}));
    EXPECT_EQ(schedule(std::vector<Pending>{{20, 19}}, kRoom).counts, (std::vector<int>{20}));
}

TEST(SchedulerTest, NoMoreFinishedPromptsThanRows) {
    EXPECT_EQ(schedule(std::vector<Pending>{{1}, {1}, {4}}, {32, 1, 1000}).counts, (std::vector<int>{1, 0, 3}));
}

TEST(SchedulerTest, APromptWaitsUntilItsBlocksAreFree) {
    const Pending writing{.nUncached = 1, .decoding = true, .nCached = 40, .nBlocks = 2, .nOwnBlocks = 2};
    EXPECT_EQ(schedule(std::vector<Pending>{writing, {70}}, {128, 8, 2}).counts, (std::vector<int>{1, 0}));
    EXPECT_EQ(schedule(std::vector<Pending>{writing, {70}}, {128, 8, 3}).counts, (std::vector<int>{1, 70}));
    // With nothing else to do it begins with what there is.
    EXPECT_EQ(schedule(std::vector<Pending>{{70}}, {128, 8, 2}).counts, (std::vector<int>{64}));
}

TEST(SchedulerTest, PromptsDoNotStallRunningAnswers) {
    Budget budget = kRoom;
    budget.maxPrefillBesideDecode = 6;
    const Pending writing{.nUncached = 1, .decoding = true};
    EXPECT_EQ(schedule(std::vector<Pending>{{4}, {20}, writing}, budget).counts, (std::vector<int>{4, 2, 1}));
    // Where nothing decodes the step is filled; what cannot be divided goes on.
    EXPECT_EQ(schedule(std::vector<Pending>{{20}}, budget).counts, (std::vector<int>{20}));
    EXPECT_EQ(schedule(std::vector<Pending>{{20, 19}, writing}, budget).counts, (std::vector<int>{19, 1}));
}

TEST(SchedulerTest, AShortPromptDoesNotOvertakeOneThatWaitsForBlocks) {
    const Pending writing{.nUncached = 1, .decoding = true, .nCached = 40, .nBlocks = 2, .nOwnBlocks = 2};
    EXPECT_EQ(schedule(std::vector<Pending>{writing, {100}, {10}}, {128, 8, 2}).counts, (std::vector<int>{1, 0, 0}));
    EXPECT_EQ(schedule(std::vector<Pending>{writing, {100}, {10}}, {128, 8, 5}).counts, (std::vector<int>{1, 100, 10}));
}

TEST(PrefillPolicyTest, LearnsHowMuchFitsBesideRunningAnswers) {
    PrefillPolicy policy;
    const int atFirst = policy.tokensBesideDecode();
    EXPECT_GE(atFirst, PrefillPolicy::kLeastTokens);
    // A slow machine: 10 ms a token of a prompt, 0.2 s a step that decodes.
    for (int i = 0; i < 50; i++) {
        policy.stepTook(0, 4, 0.2);
        policy.stepTook(64, 0, 0.64);
    }
    EXPECT_NEAR(policy.tokensBesideDecode(), 40, 2);
    // Mixed steps teach the same, without what decoding takes of them.
    for (int i = 0; i < 50; i++) policy.stepTook(40, 4, 0.2 + 0.4);
    EXPECT_NEAR(policy.tokensBesideDecode(), 40, 2);
    PrefillPolicy fast;
    for (int i = 0; i < 50; i++) {
        fast.stepTook(0, 16, 0.01);
        fast.stepTook(512, 0, 0.02);
    }
    EXPECT_GT(fast.tokensBesideDecode(), 1000);
}

TEST(SchedulerTest, TheLatestArrivalIsPreempted) {
    const Pending full{.nUncached = 1, .decoding = true, .nCached = 64, .nBlocks = 2, .nOwnBlocks = 2};
    const Schedule s = schedule(std::vector<Pending>{full, full, full}, {128, 8, 0});
    EXPECT_EQ(s.counts, (std::vector<int>{1, 1, 0}));
    EXPECT_EQ(s.preempted, std::vector<int>{2});
    // Nobody is preempted for a prompt while others go on.
    const Pending roomy{.nUncached = 1, .decoding = true, .nCached = 65, .nBlocks = 3, .nOwnBlocks = 3};
    EXPECT_TRUE(schedule(std::vector<Pending>{{90}, roomy}, {128, 8, 1}).preempted.empty());
    // Of prompts that block each other the oldest goes on.
    const Pending half{.nUncached = 40, .started = true, .nCached = 64, .nBlocks = 2, .nOwnBlocks = 2};
    const Schedule stuck = schedule(std::vector<Pending>{half, half}, {128, 8, 0});
    EXPECT_EQ(stuck.counts, (std::vector<int>{40, 0}));
    EXPECT_EQ(stuck.preempted, std::vector<int>{1});
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
    std::vector<int> tokens = {5, 9, 40};
    const std::vector<int> first = answer(engine, {tokens, {.temperature = 0.0f}, {6, {}}});
    tokens.insert(tokens.end(), first.begin(), first.end());
    tokens.insert(tokens.end(), {7, 8});
    engine.submit({tokens, {.temperature = 0.0f}, {5, {}}});
    const StepReport step = engine.step();
    EXPECT_EQ(step.nPrefillTokens, 3);  // the last token of the answer was never computed, and the two new ones
    std::vector<int> continued = {step.events.at(0).token};
    while (engine.running())
        for (const TokenEvent& event : engine.step().events) continued.push_back(event.token);
    engine.dropPrefixCache();
    EXPECT_EQ(continued, answer(engine, {tokens, {.temperature = 0.0f}, {5, {}}}));
}

TEST_F(EngineTest, StopTokenEndsTheAnswer) {
    const auto model = load({.maxTokens = 64});
    const std::vector<int> free = model->greedy({5, 9, 40}, 8);
    Engine& engine = *model->engine;
    engine.submit({{5, 9, 40}, {.temperature = 0.0f}, {8, {free[3]}}});
    std::vector<TokenEvent> events;
    while (engine.running())
        for (const TokenEvent& event : engine.step().events) events.push_back(event);
    const size_t expected = static_cast<size_t>(std::find(free.begin(), free.end(), free[3]) - free.begin()) + 1;
    ASSERT_EQ(events.size(), expected);
    EXPECT_EQ(events.back().finish, Finish::StopToken);
}

/// Allows the tokens of a list, one after the other, and then the end.
class OneText final : public TokenConstraint {
  public:
    OneText(std::vector<int> tokens, bool mustEnd) : tokens_(std::move(tokens)), mustEnd_(mustEnd) {}
    void mask(std::span<uint32_t> bits) override {
        std::fill(bits.begin(), bits.end(), 0u);
        if (at_ < tokens_.size()) bits[static_cast<size_t>(tokens_[at_]) / 32] |= 1u << (tokens_[at_] % 32);
    }
    void accept(int token) override { EXPECT_EQ(token, tokens_.at(at_++)); }
    bool mayEnd() const override { return at_ == tokens_.size(); }
    bool mustEnd() const override { return mustEnd_ && mayEnd(); }

  private:
    const std::vector<int> tokens_;
    const bool mustEnd_;
    size_t at_ = 0;
};

TEST_F(EngineTest, AConstraintDecidesWhatComes) {
    const auto model = load({.maxTokens = 64});
    const std::vector<int> wanted = {7, 300, 31, 32};
    for (const bool mustEnd : {true, false}) {
        for (const float temperature : {0.0f, 1.0f}) {
            model->engine->submit(
                {{5, 9, 40}, {.temperature = temperature}, {20, {11}}, std::make_shared<OneText>(wanted, mustEnd)});
            std::vector<int> tokens;
            Finish finish = Finish::None;
            while (model->engine->running())
                for (const TokenEvent& event : model->engine->step().events) {
                    tokens.push_back(event.token);
                    finish = event.finish;
                }
            std::vector<int> expected = wanted;
            if (!mustEnd) expected.push_back(11);
            EXPECT_EQ(tokens, expected);
            EXPECT_EQ(finish, mustEnd ? Finish::Complete : Finish::StopToken);
        }
    }
}

TEST_F(EngineTest, NoStopTokenBeforeTheLeastLength) {
    const auto model = load({.maxTokens = 64});
    const std::vector<int> free = model->greedy({5, 9, 40}, 8);
    Request request;
    request.tokens = {5, 9, 40};
    request.sampling.temperature = 0.0f;
    request.stop = {8, {free[0]}, 3};
    const std::vector<int> tokens = answer(*model->engine, request);
    EXPECT_GE(tokens.size(), 3u);
    for (size_t i = 0; i < 3; i++) EXPECT_NE(tokens[i], free[0]);
}

TEST_F(EngineTest, LogProbabilitiesComeWithEachToken) {
    const auto model = load({.maxTokens = 64});
    model->engine->submit({{5, 9, 40}, {.temperature = 0.0f}, {3, {}}, nullptr, 4});
    while (model->engine->running())
        for (const TokenEvent& event : model->engine->step().events) {
            ASSERT_TRUE(event.logprobs.has_value());
            ASSERT_EQ(event.logprobs->top.size(), 4u);
            EXPECT_EQ(event.logprobs->top[0].first, event.token);
            EXPECT_EQ(event.logprobs->top[0].second, event.logprobs->ofToken);
            EXPECT_LT(event.logprobs->ofToken, 0.0f);
        }
    Request faulty;
    faulty.tokens = {5};
    faulty.sampling.logitBias.emplace_back(9999, 1.0f);
    EXPECT_THROW(model->engine->submit(faulty), ConfigError);
}

TEST_F(EngineTest, EndsAtTheContextAndGivesBlocksBack) {
    const auto model = load({.maxTokens = 64, .maxPositions = 40});
    Engine& engine = *model->engine;
    for (int round = 0; round < 10; round++) {
        engine.submit({{5, 9, 40 + round}, {.temperature = 0.0f}, {}});
        TokenEvent last;
        int n = 3;
        while (engine.running())
            for (const TokenEvent& event : engine.step().events) {
                last = event;
                n++;
            }
        EXPECT_EQ(last.finish, Finish::Length);
        EXPECT_EQ(n, 40);
    }
}

TEST_F(EngineTest, RefusesImpossiblePrompts) {
    const auto model = load({.maxTokens = 64, .maxPositions = 40});
    Engine& engine = *model->engine;
    EXPECT_THROW(engine.submit({{}, {}, {}}), ConfigError);
    EXPECT_THROW(engine.submit({{5, 320}, {}, {}}), ConfigError);
    EXPECT_THROW(engine.submit({{-1}, {}, {}}), ConfigError);
    EXPECT_THROW(engine.submit({std::vector<int>(40, 5), {}, {}}), ConfigError);
    EXPECT_THROW(engine.score(std::vector<int>(41, 5), 0, [](int, std::span<const float>) {}), ConfigError);
    EXPECT_FALSE(engine.running());
    engine.submit({std::vector<int>(39, 5), {.temperature = 0.0f}, {}});
    EXPECT_EQ(engine.step().events.at(0).finish, Finish::Length);
}

TEST_F(EngineTest, ACancelledRequestGetsNoMoreTokens) {
    const auto model = load({.maxTokens = 64});
    Engine& engine = *model->engine;
    const int gone = engine.submit({{5, 9, 40}, {.temperature = 0.0f}, {20, {}}});
    const int stays = engine.submit({{6, 9, 40}, {.temperature = 0.0f}, {20, {}}});
    engine.step();
    engine.cancel(gone);
    engine.cancel(gone);
    std::vector<int> tokens;
    while (engine.running())
        for (const TokenEvent& event : engine.step().events) {
            EXPECT_EQ(event.request, stays);
            tokens.push_back(event.token);
        }
    EXPECT_EQ(tokens.size(), 19u);
}

/// A prompt of n tokens that nobody else asks for.
std::vector<int> promptOf(int n, int first) {
    std::vector<int> tokens = {first};
    for (int i = 1; i < n; i++) tokens.push_back((i * 37 + 11) % 290);
    return tokens;
}

TEST_F(EngineTest, ACommonPrefixIsComputedOnce) {
    const auto model = load({.maxTokens = 256});
    Engine& engine = *model->engine;
    const std::vector<int> common = promptOf(3 * kKvBlockPositions, 1);
    std::vector<int> a = common, b = common;
    a.insert(a.end(), {4, 5, 6});
    b.insert(b.end(), {7, 8});
    const std::vector<int> alone = answer(engine, {b, {.temperature = 0.0f}, {8, {}}});
    engine.dropPrefixCache();
    engine.submit({a, {.temperature = 0.0f}, {30, {}}});
    EXPECT_EQ(engine.step().nPrefillTokens, static_cast<int>(a.size()));
    const int second = engine.submit({b, {.temperature = 0.0f}, {8, {}}});
    EXPECT_EQ(engine.step().nPrefillTokens, 2);  // while the first one holds the blocks
    EXPECT_EQ(engine.statistics().nPrefixHitTokens, 3u * kKvBlockPositions);
    std::vector<int> shared;
    engine.cancel(second);
    shared = answer(engine, {b, {.temperature = 0.0f}, {8, {}}});
    EXPECT_EQ(shared, alone);
}

TEST_F(EngineTest, PreemptedRequestsEndWithTheSameText) {
    // Four requests of up to 3 + 60 positions, two blocks each, and room for five blocks.
    const std::vector<std::vector<int>> prompts = {promptOf(20, 1), promptOf(20, 2), promptOf(20, 3), promptOf(20, 4)};
    const auto roomy = load({.maxTokens = 64});
    std::vector<std::vector<int>> expected;
    for (const auto& prompt : prompts) expected.push_back(roomy->greedy(prompt, 40));

    DecoderLimits limits = roomy->decoder->limits();
    limits.nKvBlocks = 5;
    Decoder decoder(roomy->arch, roomy->plan, 0, roomy->weights, *roomy->backend, roomy->alone, limits);
    LocalForward forward(decoder);
    Engine engine(roomy->arch, roomy->embeddings, forward);
    for (const auto& prompt : prompts) engine.submit({prompt, {.temperature = 0.0f}, {40, {}}});
    std::vector<std::vector<int>> answers(prompts.size());
    while (engine.running())
        for (const TokenEvent& event : engine.step().events) answers[event.request].push_back(event.token);
    EXPECT_EQ(answers, expected);
    EXPECT_GT(engine.statistics().nPreemptions, 0u);
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
        const auto answerOf = [&](ForwardPass& forward) {
            Engine engine(model->arch, model->embeddings, forward);
            return answer(engine, {{5, 9, 40}, sampling, {20, {}}});
        };
        const std::vector<int> undisturbed = answerOf(*model->forward);
        for (const bool near : {true, false}) {
            FlakyForward flaky(*model->forward, near);
            EXPECT_EQ(answerOf(flaky), undisturbed) << near << " " << sampling.topP;
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
    for (const char* architecture :
         {"llama", "qwen3", "qwen3moe", "glm", "glm4", "glm4moe", "glm4moelite", "chatglm"}) {
        for (const DTypeInfo& info : kDTypes) {
            const DType type = info.type;
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
