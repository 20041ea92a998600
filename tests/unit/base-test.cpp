#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/byte-reader.hpp"
#include "base/checked.hpp"
#include "base/errors.hpp"
#include "base/json.hpp"
#include "base/mapped-file.hpp"
#include "base/printable.hpp"
#include "base/thread-pool.hpp"

namespace dllama {
namespace {

TEST(ThreadPool, RunsEachThreadOnce) {
    for (int n : {1, 2, 5}) {
        ThreadPool pool(n);
        std::vector<std::atomic<int>> calls(n);
        for (int round = 0; round < 200; round++) pool.run([&](int thread) { calls[thread]++; });
        for (const auto& count : calls) EXPECT_EQ(count, 200);
    }
}

TEST(ThreadPool, ParallelForCoversTheRangeOnce) {
    ThreadPool pool(3);
    for (int64_t n : {0, 1, 7, 64, 1000}) {
        std::vector<std::atomic<int>> touched(n);
        pool.parallelFor(n, 7, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) touched[i]++;
        });
        for (const auto& count : touched) EXPECT_EQ(count, 1);
    }
}

TEST(ThreadPool, WakesAfterSleeping) {
    ThreadPool pool(3);
    std::atomic<int> calls{0};
    for (int round = 0; round < 5; round++) {
        // Much longer than the threads spin: they sleep.
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        pool.run([&](int) {
            calls++;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the caller sleeps as well
        });
    }
    EXPECT_EQ(calls, 15);
}

TEST(ThreadPool, OthersWorkWhileTheCallerGoesOn) {
    for (int n : {1, 2, 4}) {
        auto owner = std::make_unique<ThreadPool>(n);
        ThreadPool& pool = *owner;
        std::atomic<int> begun{0}, ended{0};
        const auto untilHurried = [&](int thread) {
            EXPECT_GT(thread, 0);
            begun++;
            while (!pool.hurry()) std::this_thread::yield();
            ended++;
        };
        for (int round = 1; round <= 50; round++) {
            pool.startOthers(untilHurried);
            while (begun < round * (n - 1)) std::this_thread::yield();
            EXPECT_EQ(ended, (round - 1) * (n - 1));
            // The next run ends it, as does finish(), and has all threads.
            std::atomic<int> calls{0};
            if (round % 2 == 0) pool.finish();
            pool.run([&](int) {
                EXPECT_EQ(ended, round * (n - 1));
                calls++;
            });
            EXPECT_EQ(calls, n);
        }
        pool.startOthers(untilHurried);
        owner.reset();  // the pool's end ends it too
    }
}

TEST(ThreadPool, RethrowsAndGoesOn) {
    ThreadPool pool(2);
    EXPECT_THROW(pool.run([](int thread) {
        if (thread == 1) throw ConfigError("thread {}", thread);
    }),
                 ConfigError);
    int sum = 0;
    pool.parallelFor(10, 100, [&](int64_t begin, int64_t end) { sum += static_cast<int>(end - begin); });
    EXPECT_EQ(sum, 10);
}

TEST(MappedFile, NamesTheFileInErrors) {
    try {
        MappedFile file("/nonexistent/model.m");
        FAIL() << "opened";
    } catch (const FormatError& error) {
        EXPECT_STREQ(error.what(), "/nonexistent/model.m: No such file or directory");
    }
    EXPECT_THROW(MappedFile("/"), FormatError);
}

TEST(MappedFile, DoesNotWaitForAPipe) {
    const std::string path = testing::TempDir() + "/dllama-pipe";
    ::unlink(path.c_str());
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    try {
        MappedFile file(path);
        FAIL() << "opened";
    } catch (const FormatError& error) {
        EXPECT_EQ(error.what(), path + ": not a file");
    }
    ::unlink(path.c_str());
}

TEST(Json, DeepNestingIsRefusedBeforeItIsBuilt) {
    const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
    EXPECT_FALSE(parseJson(nested(kMaxJsonDepth)).is_discarded());
    EXPECT_TRUE(parseJson(nested(kMaxJsonDepth + 1)).is_discarded());
    EXPECT_TRUE(parseJson(nested(1'000'000)).is_discarded());
    EXPECT_TRUE(parseJson(std::string(1'000'000, '[')).is_discarded());
    std::string objects;
    for (int i = 0; i < 200'000; i++) objects += "{\"a\":";
    EXPECT_TRUE(parseJson(objects).is_discarded());
    // Width is no depth.
    std::string wide = "[0";
    for (int i = 0; i < 1000; i++) wide += ",[{}]";
    EXPECT_EQ(parseJson(wide + "]").size(), 1001u);
    for (const char* bad : {"", "{", "[1,]", "{\"a\":1}x", "\"\xff\""})
        EXPECT_TRUE(parseJson(bad).is_discarded()) << bad;
}

TEST(Json, WholeNumbersAreWholeAndFit) {
    EXPECT_EQ(integerFrom<int>(2147483647), 2147483647);
    EXPECT_EQ(integerFrom<uint64_t>(UINT64_MAX), UINT64_MAX);
    EXPECT_EQ(integerFrom<int>(-1), -1);
    for (const nlohmann::json& bad :
         {nlohmann::json(1e308), nlohmann::json(1.0), nlohmann::json("1"), nlohmann::json(true),
          nlohmann::json(int64_t{1} << 31), nlohmann::json(UINT64_MAX), nlohmann::json()})
        EXPECT_THROW(integerFrom<int>(bad), nlohmann::json::exception) << bad;
    EXPECT_THROW(integerFrom<uint64_t>(-1), nlohmann::json::exception);
}

TEST(Printable, NothingSteersTheTerminal) {
    EXPECT_EQ(printable("GLM-4 \u6a21\u578b"), "GLM-4 \u6a21\u578b");
    EXPECT_EQ(printable("a\x1b[2J\x07"
                        "b\n\x7f"),
              "a?[2J?b??");
    EXPECT_EQ(printable("\xc2\x9b"
                        "31m \xe2\x80\xae"
                        "fdp"),
              "?31m ?fdp");                                                         // C1's own escape; right to left
    EXPECT_EQ(printable("\xff \xc0\x80 \xed\xa0\x80 \xe6\xa8"), "? ?? ??? ??");     // not UTF-8
    EXPECT_EQ(printable(std::string(399, 'x') + "\u6a21"), std::string(399, 'x'));  // whole characters
    EXPECT_EQ(printableLines("two\nlines\x1b"), "two\nlines?");
}

TEST(Checked, ProductsDoNotWrap) {
    EXPECT_EQ(checkedProduct(1 << 20, 1 << 20, "w"), size_t{1} << 40);
    EXPECT_THROW(checkedProduct(size_t{1} << 31, size_t{1} << 33, "w"), FormatError);
    EXPECT_THROW(checkedProduct(size_t{1} << 32, size_t{1} << 31, "w"), FormatError);
}

TEST(ByteReader, StopsAtTheEnd) {
    const std::vector<std::byte> bytes(6);
    ByteReader reader(bytes, "file");
    EXPECT_EQ(reader.read<int32_t>("a number"), 0);
    EXPECT_THROW(reader.read<int32_t>("another"), FormatError);
    EXPECT_THROW(reader.bytes(UINT64_MAX, "much"), FormatError);
    EXPECT_EQ(reader.remaining(), 2u);
}

}  // namespace
}  // namespace dllama
