#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "base/trace.hpp"
#include "net/peer-listener.hpp"
#include "parallel/device-collectives.hpp"

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
    /// Where this node's steps are recorded; null: nowhere. It must outlive the worker.
    Trace* trace = nullptr;
    Log log;
    /// Silence of the root after which it counts as gone.
    std::chrono::milliseconds silence{2500};
};

}  // namespace dllama
