#include "gpu/peer-communicator.hpp"

#include <algorithm>

#include "base/errors.hpp"

namespace dllama::gpu {

PeerCommunicator::PeerCommunicator(std::shared_ptr<PeerGroup> group, int rank, int nRanks, Backend& backend,
                                   std::stop_token lost)
    : rank_(rank),
      nRanks_(nRanks),
      device_(cudaDeviceOf(backend)),
      group_(std::move(group)),
      onLost_(lost, [group = group_.get()] { group->stop(); }) {
    device_.forgetSteps();  // those that could not be recorded before may be now
    group_->join(rank, device_.gpuIndex());
    if (!group_->waitForAll(rank, lost)) fail("not all GPUs of this process are there");
    params_ = group_->allReduceParams(rank);
}

/// A rank that leaves ends the waiting of those who have not noticed yet that the session is over.
PeerCommunicator::~PeerCommunicator() {
    group_->stop();
    large_.reset();
    try {
        device_.forgetSteps();  // they write to the group's memory
    } catch (const CudaError&) {
        // The device is broken: whoever uses it next is told.
    }
}

void PeerCommunicator::allReduce(const StepInputs& step, Activations& x) {
    const size_t n = static_cast<size_t>(step.nTokens) * x.cols;
    if (large_ && n > kPeerMaxBlocks * kPeerBlockValues) return large_->allReduce(step, x);
    allReduceValues(x.f32, n);
    device_.updateForms(step.nTokens, x);
}

void PeerCommunicator::allReduceValues(float* values, size_t n) {
    if (group_->stopped()) fail("a rank was lost");
    constexpr size_t kMost = size_t{kPeerMaxBlocks} * kPeerBlockValues;
    for (size_t at = 0; at < n; at += kMost) {
        PeerAllReduceParams p = params_;
        p.x = values + at;
        p.n = static_cast<int>(std::min(kMost, n - at));
        launchPeerAllReduce(p, device_.stream());
    }
}

/// The host has waited for the step here: an all-reduce that was given up is noticed before its values are used.
void PeerCommunicator::gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) {
    if (group_->stopped() || !group_->gatherRows(rank_, mine, nRows, colsOfRank, all)) fail("a rank was lost");
}

/// Which rank it was, the heartbeats know.
void PeerCommunicator::fail(const char* reason) const {
    throw PeerLost(rank_ == 0 ? 1 : 0, "{}", reason);
}

}  // namespace dllama::gpu
