#pragma once

#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

/// Ranks whose devices can add up among themselves need not bring every partial sum to the host and back. The engine
/// sees such devices only by what is declared here.
namespace dllama {

/// How ranks all-reduce: through the network between the hosts, by NCCL, or in each other's memory.
enum class Collectives { Tcp, Nccl, Peer };
/// The most ranks that all-reduce in each other's memory: everyone sends everything to all.
constexpr int kMaxPeerRanks = 8;

/// What a node says of its device, so that the root can choose how the ranks all-reduce. All empty: a CPU.
struct DeviceIdentity {
    std::string gpu;      // the GPU's UUID
    std::string host;     // the running system it is in
    std::string process;  // drawn at random by each process
    std::string nccl;     // version of the NCCL that this process can use; empty: none
    /// UUIDs of the GPUs whose memory this GPU can read and write.
    std::vector<std::string> reaches;
};

/// One rank's place in a cluster.
struct CollectiveMember {
    Collectives how = Collectives::Tcp;
    int rank = 0;
    int nRanks = 1;
    /// What newRendezvous() of rank 0 returned.
    std::string rendezvous;
};

/// What one device offers to its rank.
class DeviceCollectives {
  public:
    virtual ~DeviceCollectives() = default;
    virtual DeviceIdentity identity() const = 0;

    /// On rank 0, for each session anew: a text without spaces by which its ranks find each other.
    virtual std::string newRendezvous(Collectives how) const = 0;

    /// Waits until all ranks have called it. The result sums on the device of `backend` and does the rest by `host`;
    /// both must outlive it. Once a stop is requested at `lost`, waiting ends, on the device too, and every call
    /// throws PeerLost. Throws PeerLost as well if the ranks do not meet in time.
    virtual std::unique_ptr<Communicator> join(const CollectiveMember& member, Backend& backend, Communicator& host,
                                               std::stop_token lost) const = 0;
};

}  // namespace dllama
