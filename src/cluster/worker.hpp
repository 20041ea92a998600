#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "cluster/cluster-setup.hpp"
#include "net/peer-listener.hpp"
#include "net/slice-store.hpp"

namespace dllama {

struct WorkerOptions {
    Address address;  // port 0: any free one
    std::optional<Secret> secret;
    /// Without a secret: let other machines connect in plain text.
    bool insecure = false;
    int nThreads = 1;
    /// Where received weights are kept for the next start; empty: nowhere.
    std::string cacheDir;
    /// Bytes that the folder may take; 0: as much as the disk has.
    uint64_t cacheLimit = 0;
    /// A model file to read slices from; empty: the root sends them.
    std::string modelPath;
    /// Bytes that this node may use; 0: what is free now.
    uint64_t memoryLimit = 0;
    /// Bytes a second that this node reads from memory, for plans that weigh nodes.
    double speed = 0.0;
    std::function<std::unique_ptr<Backend>(ThreadPool& pool)> makeBackend;
    /// How the device adds up with others; null: it cannot.
    std::shared_ptr<const DeviceCollectives> collectives;
    Log log;
    /// Silence of the root after which it counts as gone.
    std::chrono::milliseconds silence{3000};
};

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
    struct Session;
    class StatisticsScope;
    struct Loaded;

    void receive(Caller caller);
    void serve(Session& session);
    void connectMesh(Session& session, const ClusterSetup& setup);
    void load(Session& session, Connection& root, const ClusterSetup& setup);
    void computeSteps(Session& session, Connection& root, const ClusterSetup& setup);
    std::unique_ptr<SliceStore> openStore(const Architecture& arch, const ClusterSetup& setup,
                                          const std::vector<TensorSlice>& slices);
    std::string statisticsOf(const Session& session);
    Connection& waitForData(Session& session, int number);
    void abort(Session& session, const std::string& reason);

    const WorkerOptions options_;
    NodeInfo node_;
    ThreadPool pool_;
    std::unique_ptr<ModelFile> file_;
    uint64_t fileId_ = 0;
    std::unique_ptr<Loaded> loaded_;  // survives a session: the same root may come back

    std::mutex mutex_;
    std::condition_variable changed_;
    bool stopping_ = false;
    std::shared_ptr<Session> session_;
    std::unique_ptr<PeerListener> listener_;
};

}  // namespace dllama
