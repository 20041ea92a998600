#pragma once

#include <memory>
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
    /// Opens the worker's model file, if it has one. References must outlive this.
    RankLoader(const WorkerOptions& options, ThreadPool& pool);

    /// Becomes `rank` of the setup, in a dialogue with the root from Holdings to Ready. What it returns survives the
    /// session: the same root may come back. Throws ProtocolError for a setup that this worker cannot follow, and
    /// ConnectionError.
    LoadedRank& load(const ClusterSetup& setup, int rank, Connection& root, uint32_t session);

  private:
    std::unique_ptr<SliceStore> openStore(const Architecture& arch, const ClusterSetup& setup,
                                          const std::vector<TensorSlice>& slices);

    const WorkerOptions& options_;
    ThreadPool& pool_;
    std::unique_ptr<ModelFile> file_;
    uint64_t fileId_ = 0;
    std::unique_ptr<LoadedRank> loaded_;
};

}  // namespace dllama
