#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/thread-pool.hpp"
#include "engine/forward-pass.hpp"
#include "model/decoder.hpp"
#include "model/weights.hpp"
#include "parallel/device-collectives.hpp"

namespace dllama {

/// A model on several GPUs of this process, a rank in a thread of its own for each: a cluster without a network.
class GpuRanks final : public ForwardPass {
  public:
    struct Options {
        std::vector<int> gpus = {0};
        Collectives collectives = Collectives::Peer;  // of several GPUs
        int libraryRows = 0;
    };
    GpuRanks(const Options& options, const Architecture& arch, const TensorSource& source, const DecoderLimits& limits);

    void forward(const Batch& batch, std::vector<float>& best) override;
    void gatherLogits(std::vector<float>& logits) override;
    bool logitsAreNear() const override { return threads_.empty() && ranks_[0]->decoder->logitsAreNear(); }
    const DecoderLimits& limits() const override { return ranks_[0]->decoder->limits(); }

    const ShardPlan& plan() const { return plan_; }
    std::string name() const;
    /// Microseconds that an all-reduce of n values takes when many follow each other, as in a recorded step.
    double allReduceMicroseconds(int n);

  private:
    struct Rank {
        std::unique_ptr<Backend> backend;
        std::unique_ptr<Communicator> rows;  // gathers rows where the GPUs do not
        std::unique_ptr<Communicator> communicator;
        RankWeights weights;
        std::unique_ptr<Decoder> decoder;
    };
    /// Calls body(rank) for all ranks at once, each in its thread. An error of any of them is thrown.
    void onAllRanks(const std::function<void(int)>& body);
    void serve(int rank, const std::stop_token& closing);

    const Architecture& arch_;
    ShardPlan plan_;
    SingleRank alone_;
    std::vector<std::unique_ptr<Rank>> ranks_;

    // The task of the moment. Threads look for it without sleeping: steps follow each other at once.
    const std::function<void(int)>* task_ = nullptr;
    std::atomic<int> nTasks_{0}, nDone_{0};
    std::vector<std::exception_ptr> errors_;
    std::vector<std::jthread> threads_;  // the first to end
};

}  // namespace dllama
