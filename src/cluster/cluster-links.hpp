#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "cluster/cluster-setup.hpp"
#include "cluster/line-watch.hpp"
#include "net/handshake.hpp"
#include "net/heartbeat.hpp"
#include "net/peer-listener.hpp"

namespace dllama {

/// The root's lines to the workers of one session: dials them, listens to the workers' heartbeats, and knows who was
/// lost first. Once a worker is lost every operation on every data line fails, so that nobody waits in vain.
class ClusterLinks {
  public:
    struct Options {
        std::vector<Address> workers;
        /// Numbers of those that are not asked: they were lost again and again.
        std::set<int> excluded;
        std::optional<Secret> secret;
        /// Silence after which a worker is lost.
        std::chrono::milliseconds silence{1500};
        Log log;
        std::function<bool()> interrupted;
    };
    struct Link {
        Address address;
        int number = 0;  // its place in --workers, from 1
        int rank = 0;    // among those that take part
        std::unique_ptr<Connection> control, data;
        NodeInfo node;
        std::string failure;  // why there is no connection
        bool busy = false;
    };

    explicit ClusterLinks(Options options);
    ~ClusterLinks();

    /// Control lines to all workers, or, if not all are required, to those that answer within `wait`. Throws PeerLost
    /// if one is missing that is required, and Interrupted.
    void connectControl(std::chrono::milliseconds wait, bool allRequired);
    /// True if that worker would take a root now. Any thread.
    bool answers(int number) const;
    /// Then the data lines. Throws PeerLost.
    void connectData();
    /// Ends the heartbeat, and whatever waits on a device.
    void close();

    /// Of ranks 1, 2, ...
    const std::vector<std::unique_ptr<Link>>& links() const { return links_; }
    /// What the frames of this session carry.
    uint32_t session() const { return static_cast<uint32_t>(session_); }
    /// Workers that do not take part, by address; empty if all do.
    const std::string& absent() const { return absent_; }
    /// Requested once a rank is lost.
    std::stop_source& lostSource() { return lostSource_; }

    /// Calls body for each link in a thread of its own. A ConnectionError or ProtocolError becomes
    /// PeerLost: another attempt may go well. The first error is rethrown.
    void forEach(const std::function<void(Link&)>& body);
    /// Throws PeerLost.
    void sendToAll(FrameType type, std::span<const std::byte> payload);

    /// Any thread: every operation of the session fails from now on.
    void noteLost(int node, const std::string& reason);
    /// The number of the worker that a PeerLost of this session is to be laid to.
    int blamed(const PeerLost& error);
    /// What the heartbeat found out is the cause, if it found out anything.
    [[noreturn]] void rethrowLost(const PeerLost& error);

    /// What the workers did, by rank; nothing for one that does not tell in time, and for rank 0.
    std::vector<std::optional<NodeStatistics>> askStatistics();

  private:
    void dialControl(Link& link, std::chrono::milliseconds wait);
    void hear(int node, const Frame& frame);
    void hearLines(int node, const Frame& frame);
    void noteLostLocked(int node, const std::string& reason);
    std::string nameOf(int node) const;
    const Secret* secret() const { return options_.secret ? &*options_.secret : nullptr; }

    const Options options_;
    const uint64_t session_;
    std::vector<std::unique_ptr<Link>> links_;
    std::string absent_;
    std::unique_ptr<Heartbeat> heartbeat_;
    std::stop_source lostSource_;

    std::mutex mutex_;
    std::condition_variable changed_;
    struct Loss {
        int number;
        std::string reason;
    };
    std::optional<Loss> lost_;  // what was found out first
    LineWatch watch_;
    std::vector<std::optional<NodeStatistics>> told_;  // by rank
};

}  // namespace dllama
