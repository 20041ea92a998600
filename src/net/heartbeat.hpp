#pragma once

#include <array>
#include <atomic>
#include <functional>
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
        int rank = 0;
        Connection* connection = nullptr;  // outlives the heartbeat
    };
    struct Options {
        uint32_t session = 0;
        std::chrono::milliseconds interval{250};
        std::chrono::milliseconds silence{1500};
    };
    /// Called at most once for each peer, from the heartbeat's thread.
    using Lost = std::function<void(int rank, const std::string& reason)>;
    /// A frame that is no heartbeat.
    using Received = std::function<void(int rank, const Frame& frame)>;

    Heartbeat(const Options& options, const std::vector<Peer>& peers, Lost lost, Received received);
    ~Heartbeat();

    /// Any thread. A peer that cannot take it is as good as lost: nothing is reported here.
    void send(int rank, FrameType type, std::string_view text);

  private:
    struct Line {
        Peer peer;
        bool lost = false;
        Clock::time_point heard;
        // The frame that is arriving.
        std::array<std::byte, kFrameHeaderBytes> header;
        std::vector<std::byte> payload;
        size_t nReceived = 0;
    };

    void loop();
    void beat();
    void listen(Line& line);
    bool receiveSome(Line& line, Frame& frame);

    const Options options_;
    const Lost lost_;
    const Received received_;
    std::vector<Line> lines_;  // those of the thread
    std::mutex sending_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

}  // namespace dllama
