#include "gpu/nccl-communicator.hpp"

#include <chrono>

#include "base/errors.hpp"
#include "gpu/cuda-check.hpp"

namespace dllama::gpu {

namespace {

using Clock = std::chrono::steady_clock;

/// Ranks come here at about the same time; NCCL itself needs some seconds on a large host.
constexpr std::chrono::seconds kMeetLimit{30};
constexpr std::chrono::milliseconds kPause{1};
/// A call that takes longer is stuck behind an all-reduce that does not end.
constexpr std::chrono::milliseconds kCallLimit{500};
/// What the warm-up adds up at most, in values.
constexpr size_t kWarmUpValues = size_t{4} << 20;

}  // namespace

NcclCommunicator::NcclCommunicator(const NcclLibrary& nccl, const ncclUniqueId& id, int rank, int nRanks,
                                   Backend& backend, Communicator& host, std::stop_token lost)
    : nccl_(nccl), rank_(rank), nRanks_(nRanks), device_(cudaDeviceOf(backend)), host_(host), lost_(std::move(lost)) {
    device_.forgetSteps();  // those that could not be recorded before may be now
    connect(id);
    watch_ = std::jthread([this](std::stop_token closing) { watch(std::move(closing)); });
    try {
        warmUp();
    } catch (...) {
        watch_.request_stop();
        watch_.join();
        throw;
    }
}

/// NCCL frees what recorded steps refer to only when they are gone.
NcclCommunicator::~NcclCommunicator() {
    watch_.request_stop();
    try {
        device_.forgetSteps();
    } catch (const CudaError&) {
        // The device is broken: whoever uses it next is told.
    }
    watch_.join();
}

void NcclCommunicator::connect(const ncclUniqueId& id) {
    check(cudaSetDevice(device_.gpuIndex()), "cudaSetDevice");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclResult_t result = nccl_.commInitRankConfig(&comm_, nRanks_, id, rank_, &config);
    const Clock::time_point deadline = Clock::now() + kMeetLimit;
    while (result == ncclInProgress && !lost_.stop_requested() && Clock::now() < deadline) {
        std::this_thread::sleep_for(kPause);
        if (const ncclResult_t status = nccl_.commGetAsyncError(comm_, &result); status != ncclSuccess) result = status;
    }
    if (result == ncclSuccess) return;
    if (comm_ != nullptr) nccl_.commAbort(comm_);
    comm_ = nullptr;
    fail(result == ncclInProgress ? fmt::format("not all ranks met by NCCL within {} s", kMeetLimit.count())
                                  : fmt::format("NCCL cannot connect: {}", nccl_.getErrorString(result)));
}

/// NCCL connects the ways that it takes (ring, tree, protocols) when it first takes them, in a thread of its own. That
/// must not happen while a step is recorded.
void NcclCommunicator::warmUp() {
    const DeviceMemory values = allocateDevice(kWarmUpValues * sizeof(float));
    try {
        for (size_t n = 1; n <= kWarmUpValues; n *= 4) allReduceValues(reinterpret_cast<float*>(values.get()), n);
    } catch (...) {
        cudaStreamSynchronize(device_.stream().handle);
        throw;
    }
    check(cudaStreamSynchronize(device_.stream().handle), "NCCL");
    if (lost_.stop_requested()) fail("a rank was lost");
}

/// Until this communicator is closed or a rank is lost. Then ends what NCCL does and frees it.
void NcclCommunicator::watch(std::stop_token closing) {
    {
        // Either request wakes the wait: one by its token, the other by this.
        const std::stop_callback wake(lost_, [this] {
            const std::lock_guard lock(mutex_);
            changed_.notify_all();
        });
        std::unique_lock lock(mutex_);
        changed_.wait(lock, closing, [&] { return lost_.stop_requested(); });
    }
    // A call that is stuck returns once the work before it has been ended.
    std::unique_lock calls(calls_, kCallLimit);
    cudaSetDevice(device_.gpuIndex());
    nccl_.commAbort(comm_);
    if (!calls.owns_lock()) calls.lock();
    comm_ = nullptr;
}

void NcclCommunicator::allReduce(const StepInputs& step, Activations& x) {
    allReduceValues(x.f32, static_cast<size_t>(step.nTokens) * x.cols);
    device_.updateForms(step.nTokens, x);
}

void NcclCommunicator::allReduceValues(float* values, size_t n) {
    const std::lock_guard lock(calls_);
    if (lost_.stop_requested() || comm_ == nullptr) fail("a rank was lost");
    finish(nccl_.allReduce(values, values, n, ncclFloat, ncclSum, comm_, device_.stream().handle), "all-reduce");
}

/// A communicator that does not block may go on with a call in the background.
void NcclCommunicator::finish(ncclResult_t result, const char* what) {
    const Clock::time_point deadline = Clock::now() + kMeetLimit;
    while (result == ncclInProgress && !lost_.stop_requested() && Clock::now() < deadline) {
        std::this_thread::sleep_for(kPause);
        if (const ncclResult_t status = nccl_.commGetAsyncError(comm_, &result); status != ncclSuccess) result = status;
    }
    if (result != ncclSuccess) fail(fmt::format("NCCL, {}: {}", what, nccl_.getErrorString(result)));
}

/// The step's all-reduces are known to be whole only here, where the host has waited for them.
void NcclCommunicator::gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) {
    if (lost_.stop_requested()) fail("a rank was lost");
    host_.gatherRows(mine, nRows, colsOfRank, all);
}

/// Which rank it was, the heartbeats know.
void NcclCommunicator::fail(const std::string& reason) const {
    throw PeerLost(rank_ == 0 ? 1 : 0, "{}", reason);
}

}  // namespace dllama::gpu
