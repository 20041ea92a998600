#include "app/memory-bandwidth.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

namespace dllama {

double measureReadBandwidth(ThreadPool& pool) {
    constexpr int64_t kWords = int64_t{1} << 26;  // 512 MB
    constexpr int64_t kPart = int64_t{1} << 17;   // 1 MB
    const auto words = std::make_unique_for_overwrite<uint64_t[]>(kWords);
    pool.parallelFor(kWords, kPart, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) words[i] = static_cast<uint64_t>(i);
    });
    std::atomic<uint64_t> sink{0};
    double best = 0.0;
    for (int pass = 0; pass < 5; pass++) {
        const auto start = std::chrono::steady_clock::now();
        pool.parallelFor(kWords, kPart, [&](int64_t begin, int64_t end) {
            // Independent sums, so that the loads and not the additions set the pace.
            uint64_t sums[8] = {};
            for (int64_t i = begin; i < end; i += 8)
                for (int lane = 0; lane < 8; lane++) sums[lane] += words[i + lane];
            uint64_t sum = 0;
            for (uint64_t lane : sums) sum += lane;
            sink.fetch_add(sum, std::memory_order_relaxed);
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, static_cast<double>(kWords) * sizeof(uint64_t) / seconds.count());
    }
    return best;
}

}  // namespace dllama
