#include "gpu/graph-cache.hpp"

namespace dllama::gpu {

namespace {

/// A server's steps differ in tokens, sequences and context length: some dozen shapes are in use at a time.
constexpr size_t kMaxGraphs = 64;

}  // namespace

void GraphCache::run(const std::string& key, const std::function<void()>& body) {
    const auto found = graphs_.find(key);
    if (found == graphs_.end()) {
        running_.emplace();
        body();
        if (graphs_.size() >= kMaxGraphs) graphs_.clear();
        graphs_[key] = std::move(*running_);
        running_.reset();
        return;
    }
    Recording& recording = found->second;
    if (!recording.recordable) return body();
    if (!recording.graph) recording.graph = record(body);
    check(cudaGraphLaunch(recording.graph.get(), stream_.handle), "step");
}

GraphHandle GraphCache::record(const std::function<void()>& body) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream_.handle, cudaStreamCaptureModeThreadLocal), "recording a step");
    recording_ = true;
    try {
        body();
    } catch (...) {
        recording_ = false;
        if (cudaStreamEndCapture(stream_.handle, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
        throw;
    }
    recording_ = false;
    check(cudaStreamEndCapture(stream_.handle, &graph), "recording a step");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "recording a step");
    return GraphHandle(executable, cudaGraphExecDestroy);
}

}  // namespace dllama::gpu
