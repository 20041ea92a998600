#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "api/api-error.hpp"
#include "engine/engine.hpp"

namespace dllama {

/// A request for the engine and who hears of it. Both functions are called in the engine's thread and must be quick;
/// after an event that finishes the request, and after failed(), neither is called again.
struct EngineJob {
    Request request;
    std::function<void(const TokenEvent&)> told;
    std::function<void(const api::ApiError&)> failed;
    /// The answer is given up then, done or not.
    std::optional<std::chrono::steady_clock::time_point> deadline = std::nullopt;
};

/// What the engine is doing now.
struct EngineState {
    int nRunning = 0;
    int nQueued = 0;
    bool isLost = false;  // the cluster is
    EngineStatistics statistics;
    int nKvBlocks = 0;
    int nKvBlocksUsed = 0;
};

/// Owns the use of an engine: one thread, run(), steps it; the others exchange messages with it. So many requests run
/// at once, the others wait in the order of their arrival.
class EngineThread {
  public:
    /// Runs `nParallel` requests at once and lets `queueLimit` more wait.
    EngineThread(Engine& engine, int nParallel, int queueLimit);

    /// Called in the thread of run() after each step.
    void onStep(std::function<void(const StepReport&)> told) { stepTold_ = std::move(told); }

    /// Puts jobs into the queue, all or none, and returns their numbers. Throws ApiError if the queue is full (429) or
    /// the cluster lost (503).
    std::vector<uint64_t> submit(std::vector<EngineJob> jobs);
    /// Ends a request before its time: nobody hears of it any more once this has been seen by the engine's thread.
    void cancel(uint64_t job);
    EngineState state() const;

    /// Serves until stop().
    void run();
    void stop();

  private:
    struct Running {
        uint64_t id;
        EngineJob job;
    };
    using Clock = std::chrono::steady_clock;

    bool waitForWork();
    void takeMessages();
    void fillSlots();
    void expire();
    void step();
    void failAll(const api::ApiError& error);
    void tryToRecover();
    void publishState();

    Engine& engine_;
    const int nParallel_, queueLimit_;
    std::function<void(const StepReport&)> stepTold_;
    std::map<int, Running> running_;  // by the engine's number
    std::deque<Running> waiting_;
    std::optional<PeerLost> lost_;
    Clock::time_point nextTry_;

    mutable std::mutex mutex_;  // of what follows
    std::condition_variable wake_;
    std::deque<Running> arrived_;
    std::vector<uint64_t> cancelled_;
    uint64_t nextId_ = 1;
    bool stopping_ = false;
    EngineState state_;
    int nOpen_ = 0;  // requests that have come and not ended
};

}  // namespace dllama
