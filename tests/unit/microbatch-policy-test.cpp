// Which batches of a session go in microbatches: sequences of batch sizes and of the share of time in collectives, as
// clusters showed them, and what is decided for each batch.
#include "cluster/microbatch-policy.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tiny-model.hpp"

namespace dllama::test {

namespace {

/// "W" for a batch that stays whole (and is then measured to spend `share` in collectives), "m" for microbatches.
std::string decisions(MicrobatchPolicy policy, const std::vector<int>& batches, double share) {
    std::string made;
    for (const int nTokens : batches) {
        const bool split = policy.decide(nTokens);
        made += split ? 'm' : 'W';
        if (!split) policy.measured(nTokens, share);
    }
    return made;
}

TEST(MicrobatchPolicy, SlowNetworkSplitsAllButTheMeasuredBatches) {
    // Two CPUs over 100 Mbit/s: 0.63 of a prefill batch's time. The second batch and every 16th behind it stay whole.
    EXPECT_EQ(decisions({true, std::nullopt, 0.7}, std::vector<int>(36, 128), 0.63),
              "mWmmmmmmmmmmmmmmmWmmmmmmmmmmmmmmmWmm");
}

TEST(MicrobatchPolicy, FastNetworkStaysWholeOnceMeasured) {
    // Expected too high before anything was measured: only the first batch goes in microbatches in vain.
    EXPECT_EQ(decisions({true, std::nullopt, 0.4}, std::vector<int>(20, 128), 0.18), "mWWWWWWWWWWWWWWWWWWW");
    EXPECT_EQ(decisions({true, std::nullopt, 0.1}, std::vector<int>(6, 128), 0.18), "WWWWWW");
}

TEST(MicrobatchPolicy, NetworkThatSlowsDownIsNoticed) {
    MicrobatchPolicy policy(true, std::nullopt, 0.1);
    EXPECT_FALSE(policy.decide(64));
    policy.measured(64, 0.5);
    EXPECT_FALSE(policy.decide(64));  // the one that is measured
    policy.measured(64, 0.5);
    EXPECT_TRUE(policy.decide(64));
}

TEST(MicrobatchPolicy, DecodeAndSmallBatchesNeitherSplitNorCount) {
    // A prompt of 128 + 128 + 20 tokens, then decode, then the next prompt.
    EXPECT_EQ(decisions({true, std::nullopt, 0.7}, {128, 128, 20, 1, 1, 1, 31, 32, 128}, 0.63), "mWWWWWWmm");
    // What a decode step spends in collectives says nothing about prefill.
    MicrobatchPolicy policy(true, std::nullopt, 0.7);
    policy.measured(1, 0.01);
    EXPECT_TRUE(policy.decide(128));
}

TEST(MicrobatchPolicy, WishesHoldWhereTheyCan) {
    EXPECT_EQ(decisions({true, true, 0.0}, {128, 128, 128, 8}, 0.0), "mmmW");
    EXPECT_EQ(decisions({true, false, 0.9}, {128, 128, 128}, 0.9), "WWW");
    EXPECT_EQ(decisions({false, true, 0.9}, {128, 128, 128}, 0.9), "WWW");
    EXPECT_EQ(decisions({}, {128, 128}, 0.9), "WW");
}

TEST(MicrobatchPolicy, ExpectedShareGrowsWithTheLineAndShrinksWithTheWork) {
    const Architecture arch = makeArchitecture(tinyConfig("glm4moe"));
    const auto share = [&](double bytesPerUs, int nThreads) {
        return expectedCollectiveShare(arch, 2, nThreads, 128, Wire::Q80, {100.0, bytesPerUs});
    };
    for (const double bytesPerUs : {10.0, 100.0, 1000.0}) {
        EXPECT_GT(share(bytesPerUs, 1), 0.0);
        EXPECT_LT(share(bytesPerUs, 1), 1.0);
        EXPECT_GT(share(bytesPerUs, 1), share(10 * bytesPerUs, 1));
        EXPECT_LT(share(bytesPerUs, 1), share(bytesPerUs, 8));
    }
}

}  // namespace

}  // namespace dllama::test
