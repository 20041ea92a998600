#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/thread-pool.hpp"
#include "cluster/cluster-links.hpp"
#include "cluster/cluster-setup.hpp"
#include "cluster/microbatch-policy.hpp"
#include "cluster/slice-digests.hpp"
#include "engine/forward-pass.hpp"
#include "format/model-file.hpp"
#include "net/tcp-communicator.hpp"

namespace dllama {

struct ClusterOptions {
    std::vector<Address> workers;
    /// Where this program itself listens, as an API server: no worker is there. 0: nowhere.
    int ownPort = 0;
    std::optional<Secret> secret;
    Wire wire = Wire::Q80;
    /// Relative speeds, root first; empty: equal.
    std::vector<double> nodeWeights;
    /// Weigh nodes by what they say they can read from memory instead; `rootSpeed` is the root's.
    bool measuredWeights = false;
    double rootSpeed = 0.0;
    /// Bytes that the root may use; 0: unlimited.
    uint64_t memoryLimit = 0;
    /// Nothing: what suits the number of nodes.
    std::optional<ExpertPlacement> placement;
    ExpertUse expertUse;
    /// How the root's device adds up with others; null: it cannot.
    std::shared_ptr<const DeviceCollectives> collectives;
    /// Nothing: the fastest that all nodes can.
    std::optional<Collectives> collectivesWish;
    /// Whether prefill goes in microbatches, whose all-reduce is on its way while the other one is computed. Nothing:
    /// where that pays. Only CPUs.
    std::optional<bool> microbatches;
    /// How long a start or a recovery waits for workers that do not answer.
    std::chrono::milliseconds wait{5000};
    /// A worker that is silent for so long is lost.
    std::chrono::milliseconds silence{1500};
    /// A worker that checks or lays out weights and makes no progress for so long is given up.
    std::chrono::milliseconds stall{300'000};
    DecoderHooks hooks;
    Log log;
    /// True when the user wants no more of this: an attempt to put the cluster together again ends.
    std::function<bool()> interrupted;
    /// A node's weights on their way: called from several threads, one at a time for each rank.
    std::function<void(int rank, const std::string& node, size_t done, size_t total)> progress;
};

/// The whole cluster, seen from its root: sends each batch to the workers and computes rank 0's part.
class ClusterForward final : public ForwardPass {
  public:
    /// Connects, agrees on a plan, brings weights to where they are missing and loads rank 0's. All references must
    /// outlive this. Throws ConfigError if the model does not fit and PeerLost if a worker cannot be reached.
    ClusterForward(const ModelFile& file, const Architecture& arch, Backend& backend, ThreadPool& pool,
                   const DecoderLimits& limits, ClusterOptions options);
    ~ClusterForward() override;

    void forward(const Batch& batch, std::vector<float>& best) override;
    void gatherLogits(std::vector<float>& logits) override;
    bool logitsAreNear() const override { return decoder_ && decoder_->logitsAreNear(); }
    /// Waits for lost workers; then goes on with those that are there, if they can hold the model. A worker that is
    /// back later joins at the next pause: forward() of a batch in which nothing is being written throws PeerLost.
    void recover(const PeerLost& lost) override;
    const DecoderLimits& limits() const override { return limits_; }
    Traffic traffic() const override;

    const ShardPlan& plan() const { return plan_; }
    LineCost lineCost() const { return cost_; }
    Collectives collectives() const { return setup_.collectives; }
    /// Names of the nodes that compute, by rank.
    std::vector<std::string> nodes() const;
    /// What each rank did since the cluster was ready; nothing for one that does not tell in time.
    std::vector<std::optional<NodeStatistics>> nodeStatistics() const;

  private:
    void establish(bool allRequired);
    void searchAbsent(const std::stop_token& ended);
    void makePlan();
    void startSession();
    void chooseCollective();
    void joinDeviceCollective();
    Frame awaitProgressing(const ClusterLinks::Link& link, FrameType type);
    void prepareWorker(const ClusterLinks::Link& link, const std::string& setup);
    void loadOwn();
    void teardown();
    void runBatch(const Batch& batch, std::vector<float>& best);
    void runStep(const std::function<void()>& body);

    const ModelFile& file_;
    const Architecture& arch_;
    Backend& backend_;
    ThreadPool& pool_;
    const DecoderLimits limits_;
    const ClusterOptions options_;
    SliceDigests digests_;

    std::unique_ptr<ClusterLinks> links_;  // of this session
    ClusterSetup setup_;
    ShardPlan plan_;
    uint64_t loadedPlan_ = 0;  // hash of the plan that weights_ belong to; 0: none
    RankWeights weights_;
    std::unique_ptr<TcpCommunicator> communicator_;
    std::unique_ptr<Communicator> deviceCommunicator_;  // or null; does the all-reduces instead of the other
    int nDeviceFailures_ = 0;
    std::string deviceFailure_;  // why devices are not asked again to reach each other
    std::unique_ptr<Decoder> decoder_;
    MicrobatchPolicy microbatches_;
    LineCost cost_;
    std::vector<std::byte> encoded_;
    double stepSeconds_ = 0.0;    // of rank 0 in steps, since the cluster was ready
    std::map<int, int> nLosses_;  // of each worker by number, since the last step that succeeded
    bool allCpus_ = false;        // of this session
    std::string absent_;          // workers that the cluster goes on without
    std::string returned_;        // one of them that is back, once isBack_
    std::atomic<bool> isBack_{false};
    bool rejoining_ = false;
    int nExclusions_ = 0;  // recoveries that left out one which was lost again and again
    std::jthread search_;  // for them
};

}  // namespace dllama
