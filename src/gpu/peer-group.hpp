#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "gpu/cuda-check.hpp"
#include "gpu/kernels/peer-all-reduce.hpp"

namespace dllama::gpu {

/// Ranks that are threads of this process, and the memory in which their GPUs exchange values. It lives until the last
/// of them has left: a kernel of a rank that has not noticed yet may still write to those that have.
class PeerGroup {
  public:
    /// In a thread that has a device.
    explicit PeerGroup(int nRanks);

    /// Makes the memory in which the GPU of `rank` receives. Throws CudaError.
    void join(int rank, int gpuIndex);
    /// Waits for the other ranks and lets the GPU of `rank` write into their memory. False if not all join in time, or
    /// a stop is requested before. Throws CudaError.
    bool waitForAll(int rank, std::stop_token lost);

    /// Called once by each rank: true if all of them say so. False if one does not say anything in time.
    bool allAgree(bool mine, std::stop_token lost);

    /// What an all-reduce of `rank` needs to know; without x and n.
    PeerAllReduceParams allReduceParams(int rank) const;

    /// Everyone who waits here, on a device or in gatherRows(), stops waiting. Any thread.
    void stop();
    bool stopped() const { return *stopFlag() != 0; }

    /// As Communicator's. False if a rank did not come before all was stopped, or in time.
    bool gatherRows(int rank, std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all);

  private:
    struct CollectiveMember {
        bool taken = false;
        int gpuIndex = 0;
        std::unique_ptr<CUmemPoolHandle_st, cudaError_t (*)(cudaMemPool_t)> pool{nullptr, cudaMemPoolDestroy};
        DeviceMemory inbox, counters;
        // Rows on their way to rank 0, which takes them before the rank may leave others.
        std::vector<float> rows;
        std::atomic<uint32_t> nLeft{0}, nTaken{0};
    };
    volatile uint32_t* stopFlag() const { return reinterpret_cast<volatile uint32_t*>(stop_.get()); }
    template <typename Condition>
    bool waitUntil(const Condition& condition) const;

    std::vector<CollectiveMember> members_;
    DeviceMemory stop_;  // a uint32_t that GPUs read
    std::mutex mutex_;
    std::condition_variable_any changed_;
    size_t nVotes_ = 0;
    bool agreed_ = true;
};

/// The group of this name; made for the first one who asks.
std::shared_ptr<PeerGroup> peerGroup(const std::string& name, int nRanks);

}  // namespace dllama::gpu
