// Which data lines count as silent, by what both ends say of them.
#include "cluster/line-watch.hpp"

#include <gtest/gtest.h>

namespace dllama::test {

namespace {

using std::chrono::milliseconds;

class Watch : public testing::Test {
  protected:
    /// Both ends of the line between nodes 1 and 2 report, 250 ms later. 1 sends, 2 waits or not.
    bool silentAfter(uint64_t sent, uint64_t received, bool waiting) {
        now += milliseconds(250);
        const LineEnd sender{2, false, sent, 0}, receiver{1, waiting, 0, received};
        EXPECT_FALSE(watch.report(1, {&sender, 1}, now));
        const auto silent = watch.report(2, {&receiver, 1}, now);
        EXPECT_EQ(silent ? silent->missing : sent - received, sent - received);
        return silent.has_value();
    }
    LineWatch watch{milliseconds(1500)};
    LineWatch::Time now{};
};

TEST_F(Watch, BytesThatDoNotArriveAreNoticed) {
    int reports = 0;
    while (!silentAfter(1000, 400, true)) ASSERT_LT(++reports, 20);
    EXPECT_GE(reports, 6);
    EXPECT_LE(reports, 8);
}

TEST_F(Watch, LongComputingIsNoSilence) {
    for (int i = 0; i < 100; i++) ASSERT_FALSE(silentAfter(1000, 1000, true));
}

TEST_F(Watch, WhoDoesNotReadMissesNothing) {
    for (int i = 0; i < 100; i++) ASSERT_FALSE(silentAfter(1000, 400, false));
}

TEST_F(Watch, SlowLineIsNoSilence) {
    for (uint64_t i = 0; i < 100; i++) ASSERT_FALSE(silentAfter(1000, i, true));
}

TEST_F(Watch, SilenceThatEndsIsForgotten) {
    for (uint64_t i = 0; i < 20; i++)
        for (int k = 0; k < 5; k++) ASSERT_FALSE(silentAfter(1000, i, true));
}

TEST(Lines, TravelAsTheyAre) {
    const std::vector<LineEnd> lines = {{0, true, 1, 2}, {63, false, uint64_t{1} << 40, 7}};
    const std::string payload = encodeLines(lines);
    const auto decoded = decodeLines(std::as_bytes(std::span(payload)));
    ASSERT_TRUE(decoded);
    ASSERT_EQ(decoded->size(), 2u);
    EXPECT_EQ((*decoded)[1].sent, lines[1].sent);
    EXPECT_TRUE((*decoded)[0].waiting);
    EXPECT_FALSE(decodeLines(std::as_bytes(std::span(payload)).first(39)));
    const LineEnd unknown{64, false, 0, 0};
    const std::string bad = encodeLines({&unknown, 1});
    EXPECT_FALSE(decodeLines(std::as_bytes(std::span(bad))));
}

}  // namespace

}  // namespace dllama::test
