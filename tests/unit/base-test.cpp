#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "base/byte-reader.hpp"
#include "base/errors.hpp"
#include "base/mapped-file.hpp"
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
