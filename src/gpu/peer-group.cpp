#include "gpu/peer-group.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <thread>

#include "base/errors.hpp"

namespace dllama::gpu {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kMeetLimit{30}, kGatherLimit{60};
/// Ranks end a step at about the same time: looking for so long costs less than going to sleep.
constexpr std::chrono::microseconds kSpin{50}, kNap{20};

}  // namespace

PeerGroup::PeerGroup(int nRanks) : members_(nRanks), stop_(allocatePinned(sizeof(uint32_t))) {
    *stopFlag() = 0;
}

/// Pools can be opened to single other GPUs, unlike ordinary memory, all of which they would have to map.
void PeerGroup::join(int rank, int gpuIndex) {
    const std::lock_guard lock(mutex_);
    CollectiveMember& member = members_[rank];
    DLLAMA_CHECK(!member.taken);
    check(cudaSetDevice(gpuIndex), "cudaSetDevice");
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, gpuIndex};
    cudaMemPool_t pool = nullptr;
    check(cudaMemPoolCreate(&pool, &properties), "memory of several GPUs");
    member.pool.reset(pool);
    const auto bytes = peerInboxBytes(static_cast<int>(members_.size()));
    const StreamHandle stream = makeStream();
    void* inbox = nullptr;
    check(cudaMallocFromPoolAsync(&inbox, bytes, pool, stream.get()), "memory of several GPUs");
    member.inbox = {static_cast<std::byte*>(inbox), [](std::byte* p) { cudaFree(p); }};
    check(cudaMemsetAsync(inbox, 0, bytes, stream.get()), "memory of several GPUs");
    check(cudaStreamSynchronize(stream.get()), "memory of several GPUs");
    member.counters = allocateDevice(kPeerCounterBytes);
    member.gpuIndex = gpuIndex;
    member.taken = true;
    changed_.notify_all();
}

bool PeerGroup::waitForAll(int rank, std::stop_token lost) {
    std::unique_lock lock(mutex_);
    const bool complete = changed_.wait_for(lock, std::move(lost), kMeetLimit, [&] {
        return std::all_of(members_.begin(), members_.end(),
                           [](const CollectiveMember& member) { return member.taken; });
    });
    if (!complete) return false;
    for (const CollectiveMember& other : members_) {
        if (&other == &members_[rank]) continue;
        cudaMemAccessDesc access{};
        access.location = {cudaMemLocationTypeDevice, members_[rank].gpuIndex};
        access.flags = cudaMemAccessFlagsProtReadWrite;
        check(cudaMemPoolSetAccess(other.pool.get(), &access, 1), "memory of several GPUs");
    }
    return true;
}

bool PeerGroup::allAgree(bool mine, std::stop_token lost) {
    std::unique_lock lock(mutex_);
    nVotes_++;
    agreed_ = agreed_ && mine;
    changed_.notify_all();
    // Others may first have to wait in vain for what they are asked about.
    return changed_.wait_for(lock, std::move(lost), 2 * kMeetLimit, [&] { return nVotes_ == members_.size(); }) &&
           agreed_;
}

PeerAllReduceParams PeerGroup::allReduceParams(int rank) const {
    PeerAllReduceParams p{};
    p.rank = rank;
    p.nRanks = static_cast<int>(members_.size());
    for (int r = 0; r < p.nRanks; r++) p.inboxes[r] = reinterpret_cast<uint64_t*>(members_[r].inbox.get());
    p.inbox = p.inboxes[rank];
    p.counters = reinterpret_cast<uint32_t*>(members_[rank].counters.get());
    p.stop = stopFlag();
    return p;
}

void PeerGroup::stop() {
    *stopFlag() = 1;
}

template <typename Condition>
bool PeerGroup::waitUntil(const Condition& condition) const {
    const Clock::time_point begin = Clock::now();
    while (!condition()) {
        const auto waited = Clock::now() - begin;
        if (stopped() || waited > kGatherLimit) return false;
        if (waited < kSpin)
            std::this_thread::yield();
        else
            std::this_thread::sleep_for(kNap);
    }
    return !stopped();
}

bool PeerGroup::gatherRows(int rank, std::span<const float> mine, int nRows, std::span<const int> colsOfRank,
                           float* all) {
    if (rank != 0) {
        CollectiveMember& member = members_[rank];
        if (!waitUntil([&] { return member.nTaken == member.nLeft; })) return false;
        member.rows.assign(mine.begin(), mine.end());
        member.nLeft++;
        return true;
    }
    const int width = std::accumulate(colsOfRank.begin(), colsOfRank.end(), 0);
    int column = 0;
    for (size_t r = 0; r < members_.size(); column += colsOfRank[r++]) {
        CollectiveMember& member = members_[r];
        if (r != 0 && !waitUntil([&] { return member.nLeft != member.nTaken; })) return false;
        const float* rows = r == 0 ? mine.data() : member.rows.data();
        const size_t cols = colsOfRank[r];
        DLLAMA_CHECK(r == 0 || member.rows.size() == cols * nRows);
        for (int row = 0; row < nRows && cols > 0; row++)
            std::memcpy(all + static_cast<size_t>(row) * width + column, rows + row * cols, sizeof(float) * cols);
        if (r != 0) member.nTaken++;
    }
    return true;
}

std::shared_ptr<PeerGroup> peerGroup(const std::string& name, int nRanks) {
    static std::mutex mutex;
    static std::map<std::string, std::weak_ptr<PeerGroup>> groups;
    const std::lock_guard lock(mutex);
    std::erase_if(groups, [](const auto& entry) { return entry.second.expired(); });
    std::shared_ptr<PeerGroup> group = groups[name].lock();
    if (!group) groups[name] = group = std::make_shared<PeerGroup>(nRanks);
    return group;
}

}  // namespace dllama::gpu
