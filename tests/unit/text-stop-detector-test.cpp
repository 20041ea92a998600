#include <gtest/gtest.h>

#include "text/stop-detector.hpp"

namespace dllama {
namespace {

TEST(StopDetector, StopsAcrossTokens) {
    StopDetector detector({"</end>"});
    EXPECT_EQ(detector.push("Hello <"), "Hello ");
    EXPECT_EQ(detector.push("/en"), "");
    EXPECT_FALSE(detector.stopped());
    EXPECT_EQ(detector.push("d> more"), "");
    EXPECT_TRUE(detector.stopped());
    EXPECT_EQ(detector.push("more"), "");
    EXPECT_EQ(detector.flush(), "");
}

TEST(StopDetector, GivesBackWhatDoesNotMatch) {
    StopDetector detector({"aab", "xyz"});
    EXPECT_EQ(detector.push("aa"), "");
    EXPECT_EQ(detector.push("a"), "a");  // the last two may still begin "aab"
    EXPECT_EQ(detector.push("c"), "aac");
    EXPECT_EQ(detector.push("xy"), "");
    EXPECT_EQ(detector.flush(), "xy");
    EXPECT_FALSE(detector.stopped());
}

TEST(StopDetector, TakesTheFirstOfSeveral) {
    StopDetector detector({"three", "two", ""});
    EXPECT_EQ(detector.push("one two three"), "one ");
    EXPECT_TRUE(detector.stopped());
}

TEST(StopDetector, AnyCutGivesTheSameText) {
    const std::string text = "ab abab abac ababac the end";
    const std::string expected = "ab abab abac ";
    for (size_t cut = 0; cut <= text.size(); cut++) {
        for (size_t second = cut; second <= text.size(); second++) {
            StopDetector detector({"ababac", "the end"});
            std::string shown = detector.push(text.substr(0, cut));
            shown += detector.push(text.substr(cut, second - cut));
            shown += detector.push(text.substr(second));
            EXPECT_EQ(shown, expected);
            EXPECT_TRUE(detector.stopped());
        }
    }
}

TEST(StopDetector, TheTextThatEndsFirstWinsHoweverItComes) {
    StopDetector whole({"abc", "b"});
    EXPECT_EQ(whole.push("xabc"), "xa");
    StopDetector parts({"abc", "b"});
    EXPECT_EQ(parts.push("xa"), "x");
    EXPECT_EQ(parts.push("b"), "a");
    EXPECT_EQ(parts.push("c"), "");
    EXPECT_TRUE(parts.stopped());
}

TEST(StopDetector, WithoutStopsEverythingPasses) {
    StopDetector detector({});
    EXPECT_EQ(detector.push("text"), "text");
    EXPECT_FALSE(detector.stopped());
}

}  // namespace
}  // namespace dllama
