#include "server/engine-thread.hpp"

#include <algorithm>

namespace dllama {

namespace {

/// Between attempts to put a lost cluster together again.
constexpr std::chrono::seconds kRecoveryPause{5};

api::ApiError clusterLost(const PeerLost& lost) {
    return {api::ErrorKind::Unavailable, "", fmt::format("the cluster has lost a machine: {}", lost.what())};
}

}  // namespace

EngineThread::EngineThread(Engine& engine, int nParallel, int queueLimit)
    : engine_(engine), nParallel_(nParallel), queueLimit_(queueLimit) {
    publishState();
}

std::vector<uint64_t> EngineThread::submit(std::vector<EngineJob> jobs) {
    std::vector<uint64_t> ids;
    const std::lock_guard lock(mutex_);
    if (state_.isLost) throw api::ApiError(api::ErrorKind::Unavailable, "", "the cluster has lost a machine");
    const int n = static_cast<int>(jobs.size());
    if (nOpen_ + n > nParallel_ + queueLimit_)
        throw api::ApiError(api::ErrorKind::RateLimit, "",
                            fmt::format("{} requests are running or waiting, the limit is {}: try later", nOpen_,
                                        nParallel_ + queueLimit_));
    nOpen_ += n;
    for (EngineJob& job : jobs) {
        ids.push_back(nextId_);
        arrived_.push_back({nextId_++, std::move(job)});
    }
    wake_.notify_one();
    return ids;
}

void EngineThread::cancel(uint64_t job) {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(job);
    wake_.notify_one();
}

EngineState EngineThread::state() const {
    const std::lock_guard lock(mutex_);
    EngineState state = state_;
    state.nQueued += static_cast<int>(arrived_.size());
    return state;
}

void EngineThread::stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
}

void EngineThread::run() {
    while (waitForWork()) {
        takeMessages();
        expire();
        if (lost_) {
            tryToRecover();
        } else {
            fillSlots();
            publishState();
            if (engine_.running()) step();
        }
        publishState();
    }
}

bool EngineThread::waitForWork() {
    std::unique_lock lock(mutex_);
    const auto hasWork = [&] {
        return stopping_ || !arrived_.empty() || !cancelled_.empty() ||
               (!lost_ && (!waiting_.empty() || engine_.running()));
    };
    if (lost_)
        wake_.wait_until(lock, nextTry_, hasWork);
    else
        wake_.wait(lock, hasWork);
    return !stopping_;
}

void EngineThread::takeMessages() {
    std::vector<uint64_t> cancelled;
    {
        const std::lock_guard lock(mutex_);
        for (Running& job : arrived_) waiting_.push_back(std::move(job));
        arrived_.clear();
        cancelled.swap(cancelled_);
    }
    for (const uint64_t id : cancelled) {
        std::erase_if(waiting_, [&](const Running& job) { return job.id == id; });
        std::erase_if(running_, [&](const auto& entry) {
            if (entry.second.id == id) engine_.cancel(entry.first);
            return entry.second.id == id;
        });
    }
}

void EngineThread::expire() {
    const Clock::time_point now = Clock::now();
    const auto isLate = [&](const Running& job) {
        if (!job.job.deadline || *job.job.deadline > now) return false;
        job.job.failed({api::ErrorKind::Unavailable, "", "the answer was not ready in the time a request may take"});
        return true;
    };
    std::erase_if(waiting_, isLate);
    std::erase_if(running_, [&](auto& entry) {
        const bool late = isLate(entry.second);
        if (late) engine_.cancel(entry.first);
        return late;
    });
}

void EngineThread::fillSlots() {
    while (!waiting_.empty() && static_cast<int>(running_.size()) < nParallel_) {
        Running job = std::move(waiting_.front());
        waiting_.pop_front();
        try {
            const int id = engine_.submit(std::move(job.job.request));
            running_.emplace(id, std::move(job));
        } catch (const ConfigError& error) {
            job.job.failed({api::ErrorKind::InvalidRequest, "", error.what()});
        }
    }
}

void EngineThread::step() {
    try {
        const StepReport report = engine_.step();
        for (const TokenEvent& event : report.events) {
            const auto found = running_.find(event.request);
            if (found == running_.end()) continue;
            found->second.job.told(event);
            if (event.finish != Finish::None) running_.erase(found);
        }
        if (stepTold_) stepTold_(report);
    } catch (const PeerLost& error) {
        lost_ = error;
        nextTry_ = Clock::now() + kRecoveryPause;
        failAll(clusterLost(error));
    } catch (const std::exception& error) {
        fmt::print(stderr, "🚨 a step failed: {}\n", error.what());
        failAll({api::ErrorKind::Internal, "", "the model could not compute this answer"});
    }
}

void EngineThread::failAll(const api::ApiError& error) {
    for (auto& [id, job] : running_) {
        engine_.cancel(id);
        job.job.failed(error);
    }
    running_.clear();
    if (lost_) {
        for (Running& job : waiting_) job.job.failed(error);
        waiting_.clear();
    }
}

void EngineThread::tryToRecover() {
    for (Running& job : waiting_) job.job.failed(clusterLost(*lost_));
    waiting_.clear();
    if (Clock::now() < nextTry_) return;
    try {
        engine_.recover(*lost_);
        lost_.reset();
        fmt::print(stderr, "⭕ the cluster is back\n");
    } catch (const PeerLost& error) {
        lost_ = error;
        nextTry_ = Clock::now() + kRecoveryPause;
    }
}

void EngineThread::publishState() {
    EngineState state{static_cast<int>(running_.size()),
                      static_cast<int>(waiting_.size()),
                      lost_.has_value(),
                      engine_.statistics(),
                      engine_.nKvBlocks(),
                      engine_.nKvBlocks() - engine_.nFreeKvBlocks()};
    const std::lock_guard lock(mutex_);
    state_ = state;
    nOpen_ = state.nRunning + state.nQueued + static_cast<int>(arrived_.size());
}

}  // namespace dllama
