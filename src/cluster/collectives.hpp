#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/device-collectives.hpp"

namespace dllama {

const char* collectivesName(Collectives how);
/// "tcp", "nccl" or "peer".
std::optional<Collectives> collectivesFromName(const std::string& name);

struct CollectivesChoice {
    Collectives how = Collectives::Tcp;
    /// Why it is not a faster one; empty for the fastest.
    std::string reason;
};

/// How the ranks with these devices (called by `names`) all-reduce. Without a wish: in each other's memory where all
/// are threads of one process, else by NCCL, else through the network. NCCL does not encrypt: where ranks on several
/// hosts share a secret (`encrypted`) it is not taken unless it is wished for. Throws ConfigError, naming a node that
/// stands in the way, if the wish cannot be met.
CollectivesChoice chooseCollectives(std::optional<Collectives> wish, const std::vector<DeviceIdentity>& devices,
                                    const std::vector<std::string>& names, bool encrypted);

}  // namespace dllama
