#include <cmath>
#include <limits>

#include "backend/reference-backend.hpp"
#include "ops-conformance.hpp"

namespace dllama {

namespace {

std::vector<float> bestOf(Backend& backend, const std::vector<float>& logits, int rows, int k, int firstToken,
                          const std::vector<float>& temperatures) {
    const int cols = static_cast<int>(logits.size()) / rows;
    Batch batch = plainBatch(rows);
    batch.nTop = k;
    batch.outputTemperatures = temperatures;
    Activations in = upload(backend, rows, cols, logits.data(), false);
    Activations out = poisoned(backend, rows, topLogitsCols(k), false);
    const StepInputs& step = backend.upload(batch);
    // Twice, as a step that is recorded and then repeated.
    for (int i = 0; i < 2; i++) backend.run("best", [&] { backend.topLogits(step, in, firstToken, k, out); });
    return download(backend, out, rows);
}

}  // namespace

TEST_P(Conformance, TopLogits) {
    struct Case {
        int rows, cols, k;
        bool equals;
    };
    const Case cases[] = {{1, 151552, kMaxTopLogits, false}, {1, 151552, 1, false}, {1, 37888, kMaxTopLogits, true},
                          {3, 4097, kMaxTopLogits, true},    {5, 1, 1, false},      {2, 63, kMaxTopLogits, false},
                          {64, 320, kMaxTopLogits, true},    {7, 9000, 1, true}};
    const std::unique_ptr<Backend> reference = makeReferenceBackend();
    for (const Case& c : cases) {
        std::vector<float> logits = randoms(static_cast<size_t>(c.rows) * c.cols, 3.0f);
        // Few different values: the order of equal ones matters.
        if (c.equals)
            for (float& logit : logits) logit = std::round(logit);
        std::vector<float> temperatures;
        for (int i = 0; i < c.rows; i++) temperatures.push_back(0.3f + 0.4f * static_cast<float>(i % 4));
        const int firstToken = randomInt(0, 1000);
        const std::vector<float> expected = bestOf(*reference, logits, c.rows, c.k, firstToken, temperatures);
        std::vector<float> first;
        for (const int nThreads : GetParam().threadCounts) {
            const std::shared_ptr<Backend> backend = GetParam().make(nThreads);
            const std::vector<float> got = bestOf(*backend, logits, c.rows, c.k, firstToken, temperatures);
            if (first.empty()) first = got;
            expectSameBits(first, got, "with " + std::to_string(nThreads) + " threads");
            ASSERT_EQ(got.size(), expected.size());
            for (size_t i = 0; i < got.size(); i++) {
                const bool isSum = i % topLogitsCols(c.k) == 1;
                if (isSum)
                    ASSERT_NEAR(got[i] / expected[i], 1.0, 1e-5) << c.cols << " columns";
                else
                    ASSERT_EQ(got[i], expected[i]) << c.cols << " columns, value " << i;
            }
        }
    }
}

TEST_P(Conformance, TopLogitsTellOfBrokenRows) {
    std::vector<float> logits = randoms(3 * 5000);
    logits[5000 + 4999] = std::numeric_limits<float>::quiet_NaN();
    logits[2 * 5000] = -std::numeric_limits<float>::infinity();
    const std::shared_ptr<Backend> backend = GetParam().make(2);
    const std::vector<float> got = bestOf(*backend, logits, 3, 1, 0, {1.0f, 1.0f, 1.0f});
    EXPECT_FALSE(std::isnan(got[0]));
    EXPECT_TRUE(std::isnan(got[topLogitsCols(1)]));
    EXPECT_FALSE(std::isnan(got[2 * topLogitsCols(1)]));
}

}  // namespace dllama
