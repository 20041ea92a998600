#include "cluster/collectives.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/errors.hpp"

namespace dllama {

namespace {

/// Why these ranks cannot all-reduce on their GPUs at all; empty if nothing is in the way.
std::string sharedObstacle(const std::vector<DeviceIdentity>& devices, const std::vector<std::string>& names) {
    for (size_t a = 0; a < devices.size(); a++) {
        if (devices[a].gpu.empty()) return fmt::format("{} computes without a GPU", names[a]);
        for (size_t b = 0; b < a; b++)
            if (devices[a].gpu == devices[b].gpu)
                return fmt::format("{} and {} are on the same GPU", names[b], names[a]);
    }
    return {};
}

std::string peerObstacle(const std::vector<DeviceIdentity>& devices, const std::vector<std::string>& names) {
    if (std::string obstacle = sharedObstacle(devices, names); !obstacle.empty()) return obstacle;
    if (devices.size() > kMaxPeerRanks) return fmt::format("{} ranks, at most {}", devices.size(), kMaxPeerRanks);
    for (size_t a = 0; a < devices.size(); a++) {
        if (devices[a].process != devices[0].process) return fmt::format("{} is another process", names[a]);
        const auto& reached = devices[a].reaches;
        for (size_t b = 0; b < devices.size(); b++)
            if (b != a && std::find(reached.begin(), reached.end(), devices[b].gpu) == reached.end())
                return fmt::format("the GPU of {} cannot reach the memory of that of {}", names[a], names[b]);
    }
    return {};
}

std::string ncclObstacle(const std::vector<DeviceIdentity>& devices, const std::vector<std::string>& names) {
    if (std::string obstacle = sharedObstacle(devices, names); !obstacle.empty()) return obstacle;
    for (size_t a = 0; a < devices.size(); a++) {
        if (devices[a].nccl.empty()) return fmt::format("{} has no NCCL (libnccl.so.2)", names[a]);
        if (devices[a].nccl != devices[0].nccl)
            return fmt::format("{} has NCCL {}, {} has {}", names[a], devices[a].nccl, names[0], devices[0].nccl);
    }
    return {};
}

}  // namespace

const char* collectivesName(Collectives how) {
    switch (how) {
        case Collectives::Tcp:
            return "tcp";
        case Collectives::Nccl:
            return "nccl";
        case Collectives::Peer:
            return "peer";
    }
    return "";
}

std::optional<Collectives> collectivesFromName(const std::string& name) {
    for (const Collectives how : {Collectives::Tcp, Collectives::Nccl, Collectives::Peer})
        if (name == collectivesName(how)) return how;
    return std::nullopt;
}

CollectivesChoice chooseCollectives(std::optional<Collectives> wish, const std::vector<DeviceIdentity>& devices,
                                    const std::vector<std::string>& names, bool encrypted) {
    DLLAMA_CHECK(devices.size() == names.size());
    if (wish == Collectives::Tcp || devices.size() < 2) return {};
    const std::string peer = peerObstacle(devices, names);
    if (peer.empty() && wish != Collectives::Nccl) return {Collectives::Peer, ""};
    if (wish == Collectives::Peer) throw ConfigError("--collectives peer: {}", peer);
    std::string nccl = ncclObstacle(devices, names);
    if (wish == Collectives::Nccl) {
        if (!nccl.empty()) throw ConfigError("--collectives nccl: {}", nccl);
        return {Collectives::Nccl, ""};
    }
    const bool oneHost = std::all_of(devices.begin(), devices.end(),
                                     [&](const DeviceIdentity& device) { return device.host == devices[0].host; });
    if (nccl.empty() && encrypted && !oneHost)
        nccl = "NCCL would send them in plain text: --collectives nccl allows it";
    if (!nccl.empty()) return {Collectives::Tcp, nccl};
    return {Collectives::Nccl, peer};
}

}  // namespace dllama
