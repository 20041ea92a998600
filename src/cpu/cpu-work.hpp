#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "cpu/cpu-matrix.hpp"
#include "cpu/kernels.hpp"

namespace dllama {

/// What every operation of the CPU backend works with. A work item computes whole output elements, so that the number
/// of threads and who takes which item change no bit of a result.
struct CpuWork {
    ThreadPool& pool;
    const CpuKernels& kernels;

    /// Calls body(item, thread) for each item in [0, n), in their order as threads get free.
    template <typename Body>
    void forEach(int64_t n, const Body& body) const {
        if (n <= 1 || pool.nThreads() == 1) {
            for (int64_t item = 0; item < n; item++) body(item, 0);
            return;
        }
        std::atomic<int64_t> next{0};
        pool.run([&](int thread) {
            for (;;) {
                const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
                if (item >= n) return;
                body(item, thread);
            }
        });
    }

    /// The same where thread t has the items [t * near, (t + 1) * near) in its own cache: it takes those first, then
    /// its share of the rest, and helps the others out at last.
    template <typename Body>
    void forEachNear(int64_t n, int64_t near, const Body& body) const {
        const int nThreads = pool.nThreads();
        if (near == 0 || nThreads == 1 || nThreads > kMaxNearThreads) return forEach(n, body);
        struct alignas(64) Range {
            std::atomic<int64_t> next;
            int64_t end;
        };
        Range ranges[kMaxNearThreads + 1];
        for (int t = 0; t < nThreads; t++) {
            ranges[t].next = t * near;
            ranges[t].end = (t + 1) * near;
        }
        ranges[nThreads].next = nThreads * near;
        ranges[nThreads].end = n;
        pool.run([&](int thread) {
            const auto take = [&](Range& range) {
                for (;;) {
                    const int64_t item = range.next.fetch_add(1, std::memory_order_relaxed);
                    if (item >= range.end) return;
                    body(item, thread);
                }
            };
            take(ranges[thread]);
            take(ranges[nThreads]);
            for (int i = 1; i < nThreads; i++) take(ranges[(thread + i) % nThreads]);
        });
    }
    static constexpr int kMaxNearThreads = 64;
};

/// Inputs that one call of a product takes at most; with up to kMaxItemRows rows its results fit a small buffer.
constexpr int kMaxItemInputs = 64;
constexpr int kMaxItemRows = 64;

/// Rows of a work item: a power of two times `unit`, at most kMaxItemRows, small enough for each thread to get several.
inline int itemRows(int64_t rows, int unit, int nThreads) {
    int size = kMaxItemRows;
    while (size > unit && rows / size < 8 * nThreads) size /= 2;
    return size;
}

inline InputBlock* inputBlocks(const Activations& a) {
    return static_cast<InputBlock*>(a.q80);
}
inline InputView inputView(const Activations& a) {
    return {a.f32, inputBlocks(a), a.cols};
}

/// out[i * stride + r] = row (row + r) of w times input inputRows[i], plus bias. `stride` leaves room for the rows that
/// a packed group may add (see CpuKernels::Multiply).
inline void multiply(const CpuKernels& kernels, const CpuMatrix& w, int64_t row, int nRows, const InputView& x,
                     const int32_t* inputRows, int nInputs, float* out, int stride) {
    kernels.multiply.of[static_cast<int>(w.dtype)](w.view, row, nRows, x, inputRows, nInputs, out, stride);
    if (w.bias.empty()) return;
    for (int i = 0; i < nInputs; i++)
        for (int r = 0; r < nRows; r++) out[i * stride + r] += w.bias[row + r];
}

/// Writes the Q80 form of the first `rows` rows, if the buffer has one.
inline void quantizeRows(const CpuWork& work, int rows, Activations& a) {
    if (!a.q80) return;
    const auto cols = static_cast<int64_t>(a.cols);
    work.forEach(rows, [&](int64_t row, int) {
        work.kernels.quantize(a.f32 + row * cols, cols, inputBlocks(a) + row * (cols / 32));
    });
}

}  // namespace dllama
