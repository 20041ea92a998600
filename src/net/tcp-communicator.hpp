#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "backend/backend.hpp"
#include "net/exchange.hpp"
#include "net/wire-codec.hpp"
#include "parallel/communicator.hpp"

namespace dllama {

/// What the line between the ranks costs, as rank 0 measured it; equal on all ranks.
struct LineCost {
    double latencyUs = 100.0;
    double bytesPerUs = 117.0;
};

/// How often and how long a rank waited for the others.
struct SyncStatistics {
    uint64_t nCollectives = 0;
    double seconds = 0.0;
    double p50Us = 0.0, p99Us = 0.0;            // of the latest collectives
    uint64_t bytesSent = 0, bytesReceived = 0;  // since the line was measured
};

/// Collectives of the ranks over a full mesh of connections. Every rank adds the parts in rank order and takes its own
/// part in the form that the others received: all ranks hold the same bits, whatever the wire.
class TcpCommunicator final : public Communicator {
  public:
    struct Options {
        int rank = 0;
        uint32_t session = 0;
        Wire wire = Wire::Q80;
        /// A rank that is silent for so long in a collective is lost.
        std::chrono::milliseconds timeout{60'000};
    };

    /// `peers` has a connection for each rank but this one (null). They and the backend must outlive this.
    TcpCommunicator(const Options& options, std::vector<Connection*> peers, Backend& backend);
    /// If an all-reduce is still on its way, the connections are shut down.
    ~TcpCommunicator() override;

    int rank() const override { return options_.rank; }
    int nRanks() const override { return static_cast<int>(peers_.size()); }
    void allReduce(const StepInputs& step, Activations& x) override;
    bool overlaps() const override { return nRanks() > 1 && backend_.isHost(); }
    void startAllReduce(const StepInputs& step, Activations& x) override;
    void waitAllReduce(const StepInputs& step, Activations& x) override;
    void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) override;

    /// Measures the line; all ranks must call it together. What rank 0 measured holds for all.
    LineCost measureLine();
    void setLineCost(const LineCost& cost) { cost_ = cost; }

    /// All-reduce of n values by the given algorithm.
    void reduceOneShot(float* values, size_t n, const std::function<bool()>& idle = {});
    void reduceScatterGather(float* values, size_t n, const std::function<bool()>& idle = {});
    /// True if one exchange of whole vectors of `bytes` is expected to be faster than two exchanges of slices.
    static bool oneShotIsFaster(const LineCost& cost, int nRanks, size_t bytes);
    /// Microseconds that the faster of the two is expected to take.
    static double allReduceUs(const LineCost& cost, int nRanks, size_t bytes);

    /// Any thread.
    SyncStatistics statistics() const;
    double syncSeconds() const {
        const std::lock_guard lock(mutex_);
        return seconds_;
    }

  private:
    struct Part {
        size_t begin = 0, end = 0;
        size_t size() const { return end - begin; }
    };
    Part partOf(int rank, size_t n) const;
    /// All-reduce of values_. `idle` as exchangeFrames().
    void reduce(const std::function<bool()>& idle);
    void serveAllReduces(const std::stop_token& closing);
    std::span<std::byte> outFrame(int slot, FrameType type, size_t payload);
    std::span<std::byte> inFrame(int rank, size_t payload);
    /// One frame to and from each peer; `out` gives the frame for a rank.
    template <typename Out>
    void exchange(FrameType type, const Out& out, const std::function<bool()>& idle = {});
    void countCollective(Deadline begin);
    uint64_t totalSent() const;
    uint64_t totalReceived() const;

    const Options options_;
    const std::vector<Connection*> peers_;
    Backend& backend_;
    LineCost cost_;
    uint32_t sequence_ = 0;
    std::atomic<uint64_t> sentBefore_{0}, receivedBefore_{0};

    // Frames, one for each rank: header and payload.
    std::vector<std::vector<std::byte>> out_, in_;
    std::vector<Transfer> transfers_;
    std::vector<float> values_;
    const std::function<bool()> prefetch_ = [this] { return backend_.prefetchPiece(); };

    mutable std::mutex mutex_;
    uint64_t nCollectives_ = 0;
    double seconds_ = 0.0;
    std::vector<float> latestUs_;  // a ring

    // The all-reduce on its way: its thread has values_, the frames and the connections until it is done.
    enum class PendingAllReduce { Nothing, Asked, Done };
    std::mutex pendingMutex_;
    std::condition_variable_any pendingChanged_;
    PendingAllReduce pending_ = PendingAllReduce::Nothing;
    std::exception_ptr pendingError_;
    std::jthread pendingThread_;  // started by the first startAllReduce()
};

}  // namespace dllama
