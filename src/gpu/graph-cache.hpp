#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "gpu/cuda-check.hpp"

namespace dllama::gpu {

/// Steps as CUDA graphs. The first step of a key runs directly (it may allocate), the second is recorded, later ones
/// are replayed.
class GraphCache {
  public:
    explicit GraphCache(const Stream& stream) : stream_(stream) {}

    /// Runs `body` or replays what it did before under this key. Throws what body throws, and CudaError.
    void run(const std::string& key, const std::function<void()>& body);
    /// Whether a body is being recorded: nothing may be allocated or waited for.
    bool recording() const { return recording_; }
    /// The body that runs does more than launch work on the device: its key cannot be recorded.
    void leaveDevice() {
        if (running_) running_->recordable = false;
    }
    /// Forgets all recordings: addresses they hold are about to change.
    void clear() { graphs_.clear(); }

  private:
    struct Recording {
        bool recordable = true;
        GraphHandle graph{nullptr, cudaGraphExecDestroy};
    };
    GraphHandle record(const std::function<void()>& body);

    const Stream& stream_;
    std::map<std::string, Recording> graphs_;
    std::optional<Recording> running_;  // of the body that run() executes directly
    bool recording_ = false;
};

}  // namespace dllama::gpu
