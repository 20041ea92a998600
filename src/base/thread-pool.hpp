#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace dllama {

/// Threads that live as long as the pool. Between two runs they spin for a few tens of microseconds, since the next
/// operation of a step follows at once, and then sleep, so that a busy machine loses nothing. One run at a time, from
/// one thread; that thread takes part as thread 0.
class ThreadPool {
  public:
    /// nThreads >= 1, the caller included.
    explicit ThreadPool(int nThreads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int nThreads() const { return static_cast<int>(threads_.size()) + 1; }

    /// Calls body(threadIndex) once on each thread and returns when all have. The first exception is rethrown.
    template <typename Body>
    void run(const Body& body) {
        runErased([](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); }, &body);
    }

    /// Calls body(begin, end) on disjoint parts that cover [0, n), at most `grain` long, handed out as threads get
    /// free. Which thread runs which part is open: a part's result must not depend on it.
    template <typename Body>
    void parallelFor(int64_t n, int64_t grain, const Body& body) {
        if (n <= 0) return;
        if (n <= grain || threads_.empty()) {
            body(int64_t{0}, n);
            return;
        }
        std::atomic<int64_t> next{0};
        run([&](int) {
            for (;;) {
                const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
                if (begin >= n) return;
                body(begin, begin + grain < n ? begin + grain : n);
            }
        });
    }

    /// Lets the other threads call body(thread) while the caller goes on with something else. They are done when
    /// finish() or the next run has returned; `body` must live until then, must not throw, and should return soon after
    /// hurry() has become true.
    template <typename Body>
    void startOthers(const Body& body) {
        start([](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); }, &body);
        inBackground_ = true;
    }
    /// True when somebody waits for what startOthers() began.
    bool hurry() const { return hurry_.load(std::memory_order_relaxed); }
    void finish();

  private:
    using Function = void (*)(const void* context, int thread);
    void start(Function function, const void* context);
    void waitForOthers();
    void runErased(Function function, const void* context);
    void stop();
    void work(int thread);
    void call(int thread);

    std::vector<std::thread> threads_;
    Function function_ = nullptr;
    const void* context_ = nullptr;
    // A run: the caller writes function_ and context_, then raises generation_; each thread that sees it works and then
    // lowers pending_; the caller waits for zero. Both sides spin first; a sleeper is counted in sleepers_ (or
    // callerSleeps_) under mutex_ before it waits, so that the other side knows whom to wake.
    std::atomic<uint64_t> generation_{0};
    std::atomic<int> pending_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> callerSleeps_{false};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> hurry_{false};
    bool inBackground_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::exception_ptr error_;
};

}  // namespace dllama
