#include "gpu/cuda-collectives.hpp"

#include <cstring>
#include <fstream>
#include <random>

#include "base/errors.hpp"
#include "gpu/peer-communicator.hpp"
#ifdef DLLAMA_HAS_NCCL
#include "gpu/nccl-communicator.hpp"
#endif

namespace dllama {

using namespace gpu;

namespace {

/// "GPU-0123abcd-...", as nvidia-smi -L writes it.
std::string uuidOf(int gpuIndex) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, gpuIndex), "device properties");
    std::string text = "GPU";
    for (int i = 0; i < 16; i++)
        text += fmt::format("{}{:02x}", i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                            static_cast<unsigned char>(properties.uuid.bytes[i]));
    return text;
}

/// Drawn by the kernel at each boot: containers of one host have it in common.
std::string bootId() {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string id;
    std::getline(file, id);
    return id;
}

std::string randomHex(int nWords) {
    std::random_device random;
    std::string text;
    for (int i = 0; i < nWords; i++) text += fmt::format("{:08x}", random());
    return text;
}

static_assert(kMaxPeerRanks == kMaxPeers);

/// All blocks of an all-reduce in memory must run at once: on 32 processors of any GPU they can.
bool runsPeerAllReduce(int gpuIndex) {
    int nSms = 0;
    check(cudaDeviceGetAttribute(&nSms, cudaDevAttrMultiProcessorCount, gpuIndex), "processors");
    return nSms * 4 >= kPeerMaxBlocks;
}

/// GPUs of this process that `gpuIndex` and they can reach each other, without itself.
std::vector<int> peersOf(int gpuIndex) {
    int count = 0;
    check(cudaGetDeviceCount(&count), "GPU");
    std::vector<int> peers;
    for (int other = 0; other < count; other++) {
        if (other == gpuIndex || !runsPeerAllReduce(gpuIndex) || !runsPeerAllReduce(other)) continue;
        int there = 0, back = 0;
        check(cudaDeviceCanAccessPeer(&there, gpuIndex, other), "peer access");
        check(cudaDeviceCanAccessPeer(&back, other, gpuIndex), "peer access");
        if (there != 0 && back != 0) peers.push_back(other);
    }
    return peers;
}

#ifdef DLLAMA_HAS_NCCL
std::string idToHex(const ncclUniqueId& id) {
    std::string text;
    for (const char byte : id.internal) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
    return text;
}

ncclUniqueId idFromHex(const std::string& text) {
    ncclUniqueId id;
    const std::string digits = "0123456789abcdef";
    if (text.size() != 2 * sizeof id.internal || text.find_first_not_of(digits) != std::string::npos)
        throw ProtocolError("an NCCL id of {} digits, {} are due", text.size(), 2 * sizeof id.internal);
    for (size_t i = 0; i < sizeof id.internal; i++)
        id.internal[i] = static_cast<char>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
    return id;
}
#endif

class CudaCollectives final : public DeviceCollectives {
  public:
    explicit CudaCollectives(int gpuIndex) : gpuIndex_(gpuIndex) {
        static const std::string process = randomHex(4);
        identity_ = {uuidOf(gpuIndex), bootId(), process, ncclVersion(), {}};
        for (const int peer : peersOf(gpuIndex)) identity_.reaches.push_back(uuidOf(peer));
    }

    DeviceIdentity identity() const override { return identity_; }

    /// The name of a group of this process, or an id of NCCL; of the former with the latter behind it where large
    /// all-reduces go through NCCL.
    std::string newRendezvous(Collectives how) const override {
        std::string nccl;
#ifdef DLLAMA_HAS_NCCL
        if (const NcclLibrary* library = ncclLibrary()) {
            check(cudaSetDevice(gpuIndex_), "cudaSetDevice");
            ncclUniqueId id;
            if (const ncclResult_t result = library->getUniqueId(&id); result == ncclSuccess)
                nccl = idToHex(id);
            else if (how == Collectives::Nccl)
                throw CudaError("NCCL: {}", library->getErrorString(result));
        }
#endif
        return how == Collectives::Peer ? randomHex(4) + ":" + nccl : nccl;
    }

    std::unique_ptr<Communicator> join(const CollectiveMember& member, Backend& backend, Communicator& host,
                                       std::stop_token lost) const override {
        check(cudaSetDevice(gpuIndex_), "cudaSetDevice");
        if (member.how == Collectives::Nccl) return joinNccl(member, member.rendezvous, backend, host, lost);
        const size_t colon = member.rendezvous.find(':');
        if (member.how != Collectives::Peer || colon == std::string::npos || member.nRanks > kMaxPeers)
            throw ProtocolError("{} collectives of {} ranks by the name of {}", static_cast<int>(member.how),
                                member.nRanks, member.rendezvous);
        const std::shared_ptr<PeerGroup> group = peerGroup(member.rendezvous, member.nRanks);
        auto result = std::make_unique<PeerCommunicator>(group, member.rank, member.nRanks, backend, lost);
        const std::string nccl = member.rendezvous.substr(colon + 1);
        if (nccl.empty()) return result;
        // NCCL is a convenience here: without it large all-reduces are made in pieces.
        std::unique_ptr<Communicator> large;
        try {
            large = joinNccl(member, nccl, backend, host, lost);
        } catch (const PeerLost&) {
            if (lost.stop_requested()) throw;
        }
        if (group->allAgree(large != nullptr, lost)) result->setLarge(std::move(large));
        return result;
    }

  private:
    static std::unique_ptr<Communicator> joinNccl(const CollectiveMember& member, const std::string& id,
                                                  Backend& backend, Communicator& host, const std::stop_token& lost) {
#ifdef DLLAMA_HAS_NCCL
        if (const NcclLibrary* library = ncclLibrary())
            return std::make_unique<NcclCommunicator>(*library, idFromHex(id), member.rank, member.nRanks, backend,
                                                      host, lost);
#else
        static_cast<void>(backend), static_cast<void>(host), static_cast<void>(lost);
#endif
        throw ProtocolError("NCCL is not here to join {} ranks by the id {}", member.nRanks, id);
    }

    const int gpuIndex_;
    DeviceIdentity identity_;
};

}  // namespace

std::unique_ptr<DeviceCollectives> makeCudaCollectives(int gpuIndex) {
    return std::make_unique<CudaCollectives>(gpuIndex);
}

std::string ncclVersion() {
#ifdef DLLAMA_HAS_NCCL
    if (const NcclLibrary* library = ncclLibrary()) return library->version;
#endif
    return {};
}

}  // namespace dllama
