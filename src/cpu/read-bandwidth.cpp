#include "cpu/read-bandwidth.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "base/system-info.hpp"
#include "cpu/cpu-memory.hpp"

namespace dllama {

namespace {

constexpr size_t kLine = 64;
constexpr size_t kPart = size_t{1} << 20;  // bytes that a thread takes at a time

uint64_t wordAt(const std::byte* p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

/// All words, in eight independent sums so that loads and not additions set the pace.
uint64_t readWords(const std::byte* p) {
    uint64_t sums[8] = {};
    for (size_t at = 0; at < kPart; at += kLine)
        for (size_t word = 0; word < 8; word++) sums[word] += wordAt(p + at + 8 * word);
    uint64_t sum = 0;
    for (uint64_t part : sums) sum += part;
    return sum;
}

/// A word of each line, in kStreams places at once; a processor follows several streams better than one. Lines are
/// asked for kAhead bytes before they are read (0: left to the processor).
template <size_t kStreams, size_t kAhead>
uint64_t readLines(const std::byte* p) {
    constexpr size_t kStream = kPart / kStreams;
    uint64_t sums[kStreams] = {};
    for (size_t at = 0; at < kStream; at += kLine) {
        for (size_t stream = 0; stream < kStreams; stream++) {
            const std::byte* line = p + stream * kStream + at;
            if constexpr (kAhead > 0) __builtin_prefetch(line + kAhead);
            sums[stream] += wordAt(line);
        }
    }
    uint64_t sum = 0;
    for (uint64_t part : sums) sum += part;
    return sum;
}

constexpr uint64_t (*kReaders[])(const std::byte*) = {
    readWords,          readLines<1, 0>,    readLines<4, 0>,    readLines<1, 1024>,
    readLines<1, 4096>, readLines<1, 8192>, readLines<4, 1024>, readLines<4, 4096>,
};

}  // namespace

size_t bytesBeyondCaches() {
    size_t bytes = size_t{512} << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    if (const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE); cache > 0)
        bytes = std::clamp(8 * static_cast<size_t>(cache), bytes, size_t{2} << 30);
#endif
    if (const size_t available = availableMemory(); available > 0) bytes = std::min(bytes, available / 4);
    return std::max(bytes / kPart, size_t{1}) * kPart;
}

double measureReadBandwidth(ThreadPool& pool) {
    const size_t bytes = bytesBeyondCaches();
    const auto nParts = static_cast<int64_t>(bytes / kPart);
    // Prefetches run past the last part.
    const DeviceMemory memory = allocateCpuMemory(bytes + kPart);
    pool.parallelFor(nParts, 1, [&](int64_t begin, int64_t end) {
        std::memset(memory.get() + begin * kPart, 1, static_cast<size_t>(end - begin) * kPart);
    });
    std::atomic<uint64_t> sink{0};
    double best = 0.0;
    for (int pass = 0; pass < 3; pass++) {
        for (const auto& read : kReaders) {
            const auto start = std::chrono::steady_clock::now();
            pool.parallelFor(nParts, 1, [&](int64_t begin, int64_t end) {
                for (int64_t part = begin; part < end; part++)
                    sink.fetch_add(read(memory.get() + part * kPart), std::memory_order_relaxed);
            });
            const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
            best = std::max(best, static_cast<double>(bytes) / seconds.count());
        }
    }
    return best;
}

}  // namespace dllama
