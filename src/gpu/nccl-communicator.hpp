#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "gpu/cuda-device.hpp"
#include "gpu/nccl-library.hpp"
#include "parallel/device-collectives.hpp"

namespace dllama::gpu {

/// Sums by NCCL in the backend's stream, as a part of recorded steps; logits travel by another communicator.
///
/// All ranks hold the same bits: each of NCCL's ways (ring, tree) adds an element up on its way to one rank and then
/// copies that sum to all.
///
/// A GPU that waits in an all-reduce whose partner is gone waits for ever, and with it the thread that waits for the
/// GPU. So a thread of its own (`watch_`) ends all of NCCL's work when a rank is lost. It touches the communicator only
/// between the step's calls, unless one of them is itself stuck in a full launch queue, which NCCL allows for.
class NcclCommunicator final : public Communicator {
  public:
    /// Waits for all ranks with this id, which rank 0 drew with NcclLibrary::getUniqueId. Throws PeerLost.
    NcclCommunicator(const NcclLibrary& nccl, const ncclUniqueId& id, int rank, int nRanks, Backend& backend,
                     Communicator& host, std::stop_token lost);
    ~NcclCommunicator() override;

    int rank() const override { return rank_; }
    int nRanks() const override { return nRanks_; }
    void allReduce(const StepInputs& step, Activations& x) override;
    void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) override;

    /// The first n values become their sums over all ranks.
    void allReduceValues(float* values, size_t n);

  private:
    void connect(const ncclUniqueId& id);
    void warmUp();
    void watch(std::stop_token closing);
    void finish(ncclResult_t result, const char* what);
    [[noreturn]] void fail(const std::string& reason) const;

    const NcclLibrary& nccl_;
    const int rank_, nRanks_;
    CudaDevice& device_;
    Communicator& host_;
    const std::stop_token lost_;

    std::timed_mutex calls_;  // held in each call that uses comm_
    ncclComm_t comm_ = nullptr;
    std::mutex mutex_;
    std::condition_variable_any changed_;
    std::jthread watch_;
};

}  // namespace dllama::gpu
