#pragma once

#include <optional>

#include "arch/architecture.hpp"
#include "net/tcp-communicator.hpp"

namespace dllama {

/// Decides which batches go in microbatches. Two microbatches read the weights twice, and what sends and adds takes
/// time from the threads that compute: worth it where the collectives take longer than that. How long they take, whole
/// batches show: the second one of a session, and one in kMeasureEvery from there on. Pure: no clock, no network.
class MicrobatchPolicy {
  public:
    static constexpr int kMinTokens = 32, kMeasureEvery = 16;
    /// The share of a step's time in collectives from which on microbatches pay. On two cores a share of 0.18 lost 5%
    /// in microbatches, 0.63 gained 43%.
    static constexpr double kWorthwhileShare = 0.25;

    /// Never: a rank alone.
    MicrobatchPolicy() = default;
    /// `possible`: all ranks can; `wish`: what the user asks for, if anything; `expectedShare`: of a prefill batch's
    /// time in collectives, before one has been measured.
    MicrobatchPolicy(bool possible, std::optional<bool> wish, double expectedShare)
        : possible_(possible), wish_(wish), share_(expectedShare) {}

    /// Whether the next batch, of `nTokens` tokens, goes in microbatches. To be called once for each batch.
    bool decide(int nTokens);
    /// A batch that stayed whole spent this share of its time in collectives.
    void measured(int nTokens, double share);

  private:
    bool possible_ = false;
    std::optional<bool> wish_;
    double share_ = 0.0;
    int nBatches_ = 0;
};

/// The share of time that a prefill batch of `nTokens` is expected to spend in collectives, by what the line costs and
/// what the threads of a fast processor compute.
double expectedCollectiveShare(const Architecture& arch, int nRanks, int nThreads, int nTokens, Wire wire,
                               const LineCost& cost);

}  // namespace dllama
