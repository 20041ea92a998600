#include "base/thread-pool.hpp"

#include <chrono>
#include <system_error>
#if defined(__linux__)
#include <sched.h>
#endif

#include "base/errors.hpp"

namespace dllama {

namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Spins until ready() or for about 50 us; true if ready() held. Yields now and then: when threads outnumber the free
/// cores, the one we wait for may need ours.
template <typename Ready>
bool spin(const Ready& ready) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    for (int i = 1;; i++) {
        if (ready()) return true;
        pause();
        if (i % 256 == 0) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            std::this_thread::yield();
        }
    }
}

}  // namespace

ThreadPool::ThreadPool(int nThreads) {
    DLLAMA_CHECK(nThreads >= 1);
    try {
        for (int i = 1; i < nThreads; i++) threads_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
        stop();
        throw ConfigError("{} threads cannot be started, only {}: {}", nThreads, threads_.size() + 1,
                          error.code().message());
    }
}

ThreadPool::~ThreadPool() {
    finish();
    stop();
}

void ThreadPool::stop() {
    {
        std::lock_guard lock(mutex_);
        stopping_ = true;
        generation_++;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::call(int thread) {
    try {
        function_(context_, thread);
    } catch (...) {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
    }
}

void ThreadPool::start(Function function, const void* context) {
    finish();
    function_ = function;
    context_ = context;
    error_ = nullptr;
    pending_.store(static_cast<int>(threads_.size()));
    generation_.fetch_add(1);
    if (sleepers_.load() > 0) {
        std::lock_guard lock(mutex_);
        wake_.notify_all();
    }
}

void ThreadPool::waitForOthers() {
    const auto finished = [this] { return pending_.load() == 0; };
    if (!spin(finished)) {
        std::unique_lock lock(mutex_);
        callerSleeps_ = true;
        done_.wait(lock, finished);
        callerSleeps_ = false;
    }
}

void ThreadPool::runErased(Function function, const void* context) {
    start(function, context);
    call(0);
    waitForOthers();
    if (error_) std::rethrow_exception(error_);
}

void ThreadPool::finish() {
    if (!inBackground_) return;
    hurry_ = true;
    waitForOthers();
    hurry_ = false;
    inBackground_ = false;
}

void ThreadPool::work(int thread) {
    uint64_t seen = 0;
    for (;;) {
        const auto raised = [&] { return generation_.load() != seen; };
        if (!spin(raised)) {
            std::unique_lock lock(mutex_);
            sleepers_.fetch_add(1);
            wake_.wait(lock, raised);
            sleepers_.fetch_sub(1);
        }
        if (stopping_) return;
        seen++;
        call(thread);
        if (pending_.fetch_sub(1) == 1 && callerSleeps_.load()) {
            std::lock_guard lock(mutex_);
            done_.notify_one();
        }
    }
}

}  // namespace dllama
