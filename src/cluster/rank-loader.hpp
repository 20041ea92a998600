#pragma once

#include <memory>
#include <stop_token>
#include <vector>

#include "cluster/cluster-setup.hpp"
#include "cluster/worker-options.hpp"
#include "format/model-file.hpp"
#include "model/weights.hpp"
#include "net/slice-store.hpp"

namespace dllama {

/// One rank's weights and what they refer to.
struct LoadedRank {
    uint64_t key = 0;
    std::string digest;  // of the weights' content
    Architecture arch;
    ShardPlan plan;
    std::unique_ptr<TensorSource> source;  // null: the worker's own file
    std::unique_ptr<Backend> backend;
    RankWeights weights;
};

/// Brings a worker's weights to where they are computed with: from the last session's memory, the worker's own model
/// file, its cache folder, or the root.
class RankLoader {
  public:
    /// The line to the root, and what tells that the session is over.
    struct Dialogue {
        Connection& line;
        uint32_t session = 0;
        std::stop_token ended;
    };

    /// Opens the worker's model file, if it has one. References must outlive this.
    RankLoader(const WorkerOptions& options, ThreadPool& pool);

    /// Becomes `rank` of the setup, in a dialogue with the root from Holdings to Ready. What it returns survives the
    /// session: the same root may come back. Throws ProtocolError for a setup that this worker cannot follow or
    /// has no memory for, and ConnectionError.
    LoadedRank& load(const ClusterSetup& setup, int rank, const Dialogue& root);

    /// Bytes that a rank may take here.
    uint64_t memoryLimit() const { return memoryLimit_; }

  private:
    std::unique_ptr<LoadedRank> plan(const ClusterSetup& setup, int rank, const std::string& peer) const;
    std::unique_ptr<SliceStore> openStore(std::vector<TensorInfo> tensors, uint64_t key,
                                          const std::vector<TensorSlice>& slices, bool inFolder) const;
    bool isOwnFile(const ClusterSetup& setup) const;
    bool isAccepted(const std::string& digest, const Dialogue& root) const;

    const WorkerOptions& options_;
    ThreadPool& pool_;
    const uint64_t memoryLimit_;
    std::unique_ptr<ModelFile> file_;
    uint64_t fileId_ = 0;
    std::unique_ptr<LoadedRank> loaded_;
};

}  // namespace dllama
