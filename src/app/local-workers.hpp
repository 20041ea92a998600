#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "app/device.hpp"
#include "cluster/worker.hpp"

namespace dllama {

/// A worker that serves in a thread of its own until this ends.
class RunningWorker {
  public:
    explicit RunningWorker(WorkerOptions options) : worker_(std::move(options)), thread_([this] { worker_.run(); }) {}
    ~RunningWorker() {
        worker_.stop();
        thread_.join();
    }
    int port() const { return worker_.port(); }

  private:
    Worker worker_;
    std::thread thread_;
};

/// What a worker needs to know to compute on `device`.
void useDevice(WorkerOptions& options, Device device, uint64_t memoryLimit, std::FILE* status);

/// The ranks of a root's further GPUs: workers in threads of this process that listen on loopback only and read the
/// root's model file. To the cluster they are workers like all others.
class LocalWorkers {
  public:
    /// With the cluster's secret, if it has one: the root's lines to all workers are alike.
    LocalWorkers(const std::vector<Device>& devices, const std::string& modelPath, const std::optional<Secret>& secret,
                 int nThreads, uint64_t memoryLimit, std::FILE* status, Trace* trace);
    std::vector<Address> addresses() const;

  private:
    std::vector<std::unique_ptr<RunningWorker>> workers_;
};

}  // namespace dllama
