#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "cluster/cluster-setup.hpp"
#include "cluster/line-watch.hpp"
#include "cluster/rank-loader.hpp"
#include "cluster/worker-options.hpp"
#include "net/handshake.hpp"

namespace dllama {

/// One root's session on a worker, from the root's first connection on: its lines to the root and to the other ranks,
/// and what is computed over them.
class WorkerSession {
  public:
    WorkerSession(Hello hello, const WorkerOptions& options);

    const Hello& hello() const { return hello_; }
    /// True if this data line belongs to the session and is not there yet.
    bool lacks(const Hello& hello) const;
    /// Any thread: a line of this session.
    void attach(Caller caller);
    bool hasRoot() const;
    /// The root's address.
    const std::string& root() const { return control_->peer(); }

    /// Becomes a rank of the root's model and computes its steps. Returns only by an exception: when the root is gone,
    /// breaks the protocol or wants what this worker cannot do.
    void serve(RankLoader& loader);
    /// Any thread: every operation of the session fails from now on.
    void abort(const std::string& reason);
    /// The same, and the root hears that the line is closed.
    void stop(const std::string& reason);
    /// Why the session was aborted; empty if it was not.
    std::string abortReason() const;

  private:
    class StatisticsScope;

    Connection& waitForData(int number);
    void connectMesh(const ClusterSetup& setup);
    void computeSteps(LoadedRank& loaded, Connection& root, const ClusterSetup& setup);
    std::string statistics() const;
    std::vector<LineEnd> lines() const;
    uint32_t id() const { return static_cast<uint32_t>(hello_.session); }

    const Hello hello_;
    const WorkerOptions& options_;
    std::unique_ptr<Connection> control_;
    std::vector<std::unique_ptr<Connection>> data_;  // to the node of each number
    std::stop_source lost_;                          // ends what waits on the device
    std::atomic<double> stepSeconds_{0.0};

    mutable std::mutex mutex_;  // of the lines that are still to come, and of what follows
    std::condition_variable changed_;
    std::string abortReason_;
    const TcpCommunicator* communicator_ = nullptr;  // while steps are computed
};

}  // namespace dllama
