// One rank and many ranks compute the same model.
#include <cmath>

#include "local-cluster.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

double largestDifference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    double largest = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
        largest = difference >= largest ? difference : std::isnan(difference) ? 1e30 : largest;
    }
    return largest;
}

class ClusterEquality : public testing::TestWithParam<std::string> {};

TEST_P(ClusterEquality, AnyNumberOfRanksGivesTheSameLogits) {
    const TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig(GetParam());
    writeTinyModel(path, config, DType::F32);
    const std::vector<int> prompt = somePrompt(config, 21);

    ClusterOptions options;
    options.wire = Wire::F32;
    RootUnderTest alone(path, options);
    const std::vector<float> expected = alone.logits(prompt);
    const std::vector<int> expectedTokens = alone.greedy(prompt, 12);
    ASSERT_EQ(expected.size(), prompt.size() * config.vocabSize);

    std::vector<std::unique_ptr<WorkerThread>> workers;
    for (int nRanks : {2, 3, 4, 5, 8}) {
        while (static_cast<int>(workers.size()) < nRanks - 1) workers.push_back(std::make_unique<WorkerThread>());
        options.workers.clear();
        for (const auto& worker : workers) options.workers.push_back(worker->address());
        RootUnderTest root(path, options);
        EXPECT_LT(largestDifference(root.logits(prompt), expected), 1e-3) << nRanks << " ranks";
        EXPECT_EQ(root.greedy(prompt, 12), expectedTokens) << nRanks << " ranks";
    }
}

INSTANTIATE_TEST_SUITE_P(Families, ClusterEquality,
                         testing::Values("llama", "qwen3", "qwen3moe", "glm", "glm4", "glm4moe", "chatglm"),
                         [](const auto& info) { return info.param; });

}  // namespace

}  // namespace dllama::test
