#pragma once

#include <cstddef>
#include <cstdint>

#include "base/thread-pool.hpp"
#include "cpu/cpu-matrix.hpp"

namespace dllama {

/// Brings the first rows of the next matrix into the caches of the threads that will multiply them, while the ranks of
/// a cluster meet. A product waits for memory, an all-reduce for the network: side by side they take the longer of the
/// two times. Each thread fills half of its core's second-level cache.
class Prefetcher {
  public:
    Prefetcher(ThreadPool& pool, int groupRows);
    ~Prefetcher() { pool_.finish(); }

    /// What the next product reads: `rowsPerItem` rows of each matrix are one work item. Forgets the one before.
    void plan(const CpuMatrix& matrix, const CpuMatrix* beside, int rowsPerItem);
    /// The first call lets the other threads begin. False when thread 0 has no more to do.
    bool piece();
    /// Waits until all threads have stopped; the matrices may go then.
    void end();
    /// Items that each thread finds in its cache, if this is the planned product.
    int64_t take(const CpuMatrix& matrix, int rowsPerItem);

  private:
    struct Bytes {
        const std::byte* data = nullptr;
        size_t perItem = 0;
    };
    /// Loads from `at` on, at most `limit` bytes, of the items of `thread`; returns where it ended.
    size_t load(int thread, size_t at, size_t limit) const;

    ThreadPool& pool_;
    const int groupRows_;
    const size_t budget_;  // bytes a thread

    const CpuMatrix* matrix_ = nullptr;
    int rowsPerItem_ = 0;
    int64_t itemsPerThread_ = 0;
    Bytes bytes_[2];
    bool started_ = false;
    size_t own_ = 0;  // bytes that thread 0 has done
    struct Others {
        const Prefetcher& prefetcher;
        void operator()(int thread) const;
    };
    const Others others_{*this};
};

}  // namespace dllama
