#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>

#include "cluster/rank-loader.hpp"
#include "cluster/worker-options.hpp"
#include "cluster/worker-session.hpp"

namespace dllama {

/// One worker: serves one root at a time, and the next one after it, whatever happens to the connection.
class Worker {
  public:
    /// Listens from now on. Throws ConfigError if the address cannot be used, or is open to others without a secret.
    explicit Worker(WorkerOptions options);
    ~Worker();
    int port() const { return listener_->port(); }

    /// Serves until stop().
    void run();
    /// Any thread, and a signal's handler thread.
    void stop();

  private:
    void receive(Caller caller);
    std::shared_ptr<WorkerSession> nextSession();

    const WorkerOptions options_;
    NodeInfo node_;
    ThreadPool pool_;
    RankLoader loader_;

    std::mutex mutex_;
    std::condition_variable changed_;
    bool stopping_ = false;
    std::shared_ptr<WorkerSession> session_;  // shared with the callers that join it
    std::unique_ptr<PeerListener> listener_;
};

}  // namespace dllama
