// One rank and many ranks compute the same model: the golden models and the demo model, on 1, 2, 3, 4, 5 and 8 ranks.
#include <cmath>
#include <csignal>

#include "golden-case.hpp"
#include "local-cluster.hpp"
#include "tensor/blocks.hpp"

namespace dllama::test {

namespace {

constexpr int kRankCounts[] = {2, 3, 4, 5, 8};
/// Rounding to Q80 between the ranks, like any other order of sums before its Q40 products, moves the demo model's
/// margins by 0.2 (root mean square) and by 0.72 at most over the 230 tokens of the golden prompts: closer ones may
/// change places.
constexpr double kSmallestMarginQ80 = 0.75;
constexpr double kPerplexityTolerance = 0.005;

/// Workers for up to eight ranks that serve one root after the other.
class Workers {
  public:
    ClusterOptions options(int nRanks, Wire wire) {
        ClusterOptions options;
        options.wire = wire;
        while (static_cast<int>(workers_.size()) < nRanks - 1) workers_.push_back(std::make_unique<WorkerThread>());
        for (int i = 0; i < nRanks - 1; i++) options.workers.push_back(workers_[i]->address());
        return options;
    }

  private:
    std::vector<std::unique_ptr<WorkerThread>> workers_;
};

struct Answers {
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<int>> greedy;
};

Answers answer(RootUnderTest& root, const GoldenCase& golden) {
    Answers answers;
    for (size_t i = 0; i < golden.prompts.size(); i++) {
        const GoldenPrompt& prompt = golden.prompts[i];
        answers.logits.push_back(root.logits(prompt.prompt));
        // Answers take most of the time: those to every other prompt, the longest among them.
        answers.greedy.push_back({});
        if (i % 2 == 1) answers.greedy.back() = root.greedy(prompt.prompt, static_cast<int>(prompt.greedy.size()));
    }
    return answers;
}

void expectSame(const Answers& answers, const Answers& alone, const GoldenCase& golden, const std::string& what) {
    const testing::ScopedTrace trace(__FILE__, __LINE__, what);
    for (size_t i = 0; i < golden.prompts.size(); i++) {
        EXPECT_LE(largestDifference(answers.logits[i], alone.logits[i]), kLogitTolerance);
        if (i % 2 == 1) expectGreedy(answers.greedy[i], golden.prompts[i]);
    }
}

class GoldenModels : public testing::TestWithParam<std::string> {};

TEST_P(GoldenModels, AnyNumberOfRanksGivesTheSameLogits) {
    const std::string path = std::string(DLLAMA_GOLDEN_MODELS) + "/" + GetParam() + "-f32.m";
    const GoldenCase golden(std::string(DLLAMA_TEST_DATA "/golden/") + GetParam());
    RootUnderTest one(path, {});
    const Answers alone = answer(one, golden);
    Workers workers;
    for (const int nRanks : kRankCounts) {
        std::vector<ExpertPlacement> placements = {ExpertPlacement::Sliced};
        if (one.arch.config.isMoe() && nRanks % 2 == 1) placements.push_back(ExpertPlacement::Whole);
        for (const ExpertPlacement placement : placements) {
            ClusterOptions options = workers.options(nRanks, Wire::F32);
            options.placement = placement;
            RootUnderTest root(path, options);
            expectSame(
                answer(root, golden), alone, golden,
                fmt::format("{} ranks, {} experts", nRanks, placement == ExpertPlacement::Whole ? "whole" : "sliced"));
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModels,
                         testing::Values("chatglm-6b", "glm-4-9b-chat", "glm-hf-bias", "glm4-dense", "glm4moe-16x2",
                                         "glm4moe-128x8", "llama", "qwen3", "qwen3moe", "qwen2", "solar-open",
                                         "glm45v-text", "glm41v-text", "glm-ocr-text", "glm47flash"),
                         [](const auto& info) {
                             std::string name = info.param;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

class DemoModel : public testing::Test {
  protected:
    DemoModel() {
        std::ifstream file(DLLAMA_TEST_DATA "/demo/golden.json");
        for (const auto& item : nlohmann::json::parse(file)) prompts.push_back(item.at("prompt"));
    }
    const std::string path = DLLAMA_MODELS "/demo/demo-q40.m";
    std::vector<std::vector<int>> prompts;
    Workers workers;
};

/// The model with its weights as F32: Q40 weights meet activations rounded to Q80, where the last bit of a sum may
/// decide about a whole step of the rounding.
void writeAsF32(const std::string& from, const std::string& to) {
    const ModelFile file(from);
    std::vector<TensorInfo> tensors = file.tensors();
    for (TensorInfo& tensor : tensors) tensor.dtype = DType::F32;
    std::vector<std::byte> scratch;
    writeModelFile(to, file.config(), DType::F32, tensors, [&](const TensorInfo& tensor) {
        const auto stored = file.read({tensor.name, 0, tensor.rows, 0, tensor.cols}, scratch);
        std::vector<std::byte> bytes(tensor.bytes());
        dequantize(file.info(tensor.name).dtype, stored.data(), reinterpret_cast<float*>(bytes.data()),
                   tensor.rows * tensor.cols);
        return bytes;
    });
}

TEST_F(DemoModel, SameLogitsWithF32) {
    const TemporaryFolder folder;
    const std::string exact = folder.file("demo-f32.m");
    writeAsF32(path, exact);
    RootUnderTest one(exact, {});
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<int>> greedy;
    for (const std::vector<int>& prompt : prompts) {
        logits.push_back(one.logits(prompt));
        greedy.push_back(one.greedy(prompt, 32));
    }
    for (const int nRanks : kRankCounts) {
        RootUnderTest root(exact, workers.options(nRanks, Wire::F32));
        for (size_t i = 0; i < prompts.size(); i++) {
            EXPECT_LE(largestDifference(root.logits(prompts[i]), logits[i]), kLogitTolerance) << nRanks << " ranks";
            EXPECT_EQ(root.greedy(prompts[i], 32), greedy[i]) << nRanks << " ranks";
        }
    }
}

TEST_F(DemoModel, SameTextWithQ80) {
    RootUnderTest one(path, {});
    for (const int nRanks : kRankCounts) {
        RootUnderTest root(path, workers.options(nRanks, Wire::Q80));
        for (const std::vector<int>& prompt : prompts) {
            const std::vector<int> expected = one.greedy(prompt, 32), tokens = root.greedy(prompt, 32);
            const auto [a, b] = std::mismatch(tokens.begin(), tokens.end(), expected.begin());
            if (a == tokens.end()) continue;
            // Another token is another text from here on: it may only be where two tokens were as good as equal.
            std::vector<int> sofar = prompt;
            sofar.insert(sofar.end(), tokens.begin(), a);
            const std::vector<float> logits = one.logits(sofar);
            const float* last = logits.data() + logits.size() - static_cast<size_t>(one.arch.config.vocabSize);
            std::printf("%d ranks: token %d differs, margin %.3f\n", nRanks, static_cast<int>(a - tokens.begin()),
                        last[*b] - last[*a]);
            EXPECT_LE(last[*b] - last[*a], kSmallestMarginQ80);
        }
    }
}

/// Mean negative log-likelihood of the tokens in pieces of `chunk`.
double meanNll(RootUnderTest& root, std::span<const int> tokens, int chunk) {
    double sum = 0.0;
    int n = 0;
    for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
        const std::span<const int> part = tokens.subspan(begin, std::min<size_t>(chunk, tokens.size() - begin));
        root.engine->score(part, 0, [&](int i, std::span<const float> logits) {
            if (i + 1 == static_cast<int>(part.size())) return;
            const double largest = *std::max_element(logits.begin(), logits.end());
            double exps = 0.0;
            for (const float logit : logits) exps += std::exp(static_cast<double>(logit) - largest);
            sum -= static_cast<double>(logits[part[i + 1]]) - largest - std::log(exps);
            n++;
        });
    }
    return sum / n;
}

TEST_F(DemoModel, SamePerplexityWithQ80) {
    std::ifstream file(DLLAMA_TEST_DATA "/demo/heldout.json");
    const nlohmann::json heldout = nlohmann::json::parse(file);
    const std::vector<int> ids = heldout.at("ids");
    const int chunk = heldout.at("chunk");
    DecoderLimits limits;
    limits.maxTokens = limits.maxOutputs = 256;
    RootUnderTest one(path, {}, limits);
    const double alone = std::exp(meanNll(one, ids, chunk));
    double sum = 0.0;
    for (const int nRanks : kRankCounts) {
        RootUnderTest root(path, workers.options(nRanks, Wire::Q80), limits);
        const double perplexity = std::exp(meanNll(root, ids, chunk));
        std::printf("%d ranks: perplexity %.4f, alone %.4f\n", nRanks, perplexity, alone);
        EXPECT_NEAR(perplexity / alone, 1.0, 2 * kPerplexityTolerance);
        sum += perplexity / std::size(kRankCounts);
    }
    // Each of them, and one rank with other instructions, scatters by 0.2 %: see kSmallestMarginQ80.
    EXPECT_NEAR(sum / alone, 1.0, kPerplexityTolerance);
}

/// Prompts of 32 tokens and more go in microbatches, each computed while the other's all-reduce is on its way: the same
/// bits as in pieces that are too small for it.
TEST(ClusterEquality, PrefillInMicrobatches) {
    Workers workers;
    for (const std::string model : {"glm4-dense", "glm4moe-16x2", "llama", "qwen3moe", "glm47flash"}) {
        const GoldenCase golden(DLLAMA_TEST_DATA "/golden/" + model);
        const std::string path = std::string(DLLAMA_GOLDEN_MODELS) + "/" + model + "-f32.m";
        std::vector<int> prompt;
        while (prompt.size() < 150) {
            const std::vector<int>& next = golden.prompts[prompt.size() % golden.prompts.size()].prompt;
            prompt.insert(prompt.end(), next.begin(), next.end());
        }
        prompt.resize(150);
        for (const int nRanks : {2, 3}) {
            std::vector<std::vector<float>> logits;
            std::vector<uint64_t> nCollectives;
            for (const auto& [tokens, microbatches] : {std::pair{16, true}, {33, true}, {100, true}, {100, false}}) {
                ClusterOptions options = workers.options(nRanks, Wire::F32);
                options.microbatches = microbatches;
                RootUnderTest root(path, std::move(options),
                                   {.maxTokens = tokens, .maxOutputs = tokens, .maxPositions = 256});
                logits.push_back(root.logits(prompt));
                const auto statistics = root.forward->nodeStatistics();
                ASSERT_TRUE(statistics[0]);
                nCollectives.push_back(statistics[0]->sync.nCollectives);
            }
            EXPECT_GE(nCollectives[2], nCollectives[3] + 8) << "nothing went in microbatches";
            EXPECT_EQ(logits[3], logits[2]) << model << ", " << nRanks << " ranks, whole";
            EXPECT_EQ(logits[1], logits[0]) << model << ", " << nRanks << " ranks, pieces of 33";
            EXPECT_EQ(logits[2], logits[0]) << model << ", " << nRanks << " ranks, pieces of 100";
        }
    }
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
