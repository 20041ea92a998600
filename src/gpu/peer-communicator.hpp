#pragma once

#include "gpu/cuda-device.hpp"
#include "gpu/peer-group.hpp"
#include "parallel/device-collectives.hpp"

namespace dllama::gpu {

/// All-reduce of ranks that are threads of one process, in the memory of each other's GPUs
/// (kernels/peer-all-reduce.cu); logits go through the process's memory. What is too large for one launch goes through
/// `large`, or in pieces if that is null.
class PeerCommunicator final : public Communicator {
  public:
    /// Waits until all ranks have joined the group. Throws PeerLost.
    PeerCommunicator(std::shared_ptr<PeerGroup> group, int rank, int nRanks, Backend& backend, std::stop_token lost);
    ~PeerCommunicator() override;

    /// For large all-reduces from now on; equal on all ranks.
    void setLarge(std::unique_ptr<Communicator> large) { large_ = std::move(large); }

    int rank() const override { return rank_; }
    int nRanks() const override { return nRanks_; }
    void allReduce(const StepInputs& step, Activations& x) override;
    void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) override;

    /// The first n values become their sums over all ranks.
    void allReduceValues(float* values, size_t n);

  private:
    [[noreturn]] void fail(const char* reason) const;

    const int rank_, nRanks_;
    CudaDevice& device_;
    const std::shared_ptr<PeerGroup> group_;
    PeerAllReduceParams params_;
    std::unique_ptr<Communicator> large_;
    const std::stop_callback<std::function<void()>> onLost_;
};

}  // namespace dllama::gpu
