#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "net/frame.hpp"

namespace dllama {

/// Tells the peers four times a second that this process lives, and notices when one of them does not: the connection
/// broke, or nothing came for a while (frozen, unplugged). Has a thread of its own, so that the length of a step does
/// not matter.
class Heartbeat {
  public:
    struct Peer {
        int node = 0;                      // what the callbacks call it
        Connection* connection = nullptr;  // outlives the heartbeat
    };
    struct Options {
        uint32_t session = 0;
        std::chrono::milliseconds interval{250};
        std::chrono::milliseconds silence{1500};
    };
    /// Called at most once for each peer, from the heartbeat's thread.
    using Lost = std::function<void(int node, const std::string& reason)>;
    /// A frame that is no heartbeat; called from the heartbeat's thread, and may send().
    using Received = std::function<void(int node, const Frame& frame)>;
    /// What to tell with each beat, as the payload of a Lines frame. Without it a beat says nothing but that.
    using Report = std::function<std::string()>;

    Heartbeat(const Options& options, Lost lost, Received received, Report report = {});
    ~Heartbeat();

    /// Any thread: one more peer to talk to and to watch.
    void add(const Peer& peer);
    /// Any thread. A peer that cannot take it is as good as lost: nothing is reported here.
    void send(int node, FrameType type, std::string_view text);

  private:
    struct Line {
        Peer peer;
        Clock::time_point heard;
        bool lost = false;
        // The frame that is arriving.
        std::array<std::byte, kFrameHeaderBytes> header;
        std::vector<std::byte> payload;
        size_t nReceived = 0;
    };

    void loop();
    void listen(Line& line);
    bool receiveSome(Line& line, Frame& frame);

    const Options options_;
    const Lost lost_;
    const Received received_;
    const Report report_;
    std::list<Line> lines_;  // grows under the mutex; what is in a line belongs to the thread
    std::mutex mutex_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

}  // namespace dllama
