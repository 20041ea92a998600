#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dllama {

/// What one end of a data line knows of it.
struct LineEnd {
    int peer = 0;          // number of the node at the other end
    bool waiting = false;  // somebody waits for bytes of the peer
    uint64_t sent = 0, received = 0;
};

/// As the payload of a Lines frame; 20 bytes a line: u16 peer, u16 waiting, u64 sent, u64 received.
std::string encodeLines(std::span<const LineEnd> lines);
/// Nothing if the payload is damaged.
std::optional<std::vector<LineEnd>> decodeLines(std::span<const std::byte> payload);

/// Finds the data lines that have fallen silent in one direction or both: one end has sent more than the other one,
/// which waits for it, has received, and nothing arrives for a while. A rank that computes for long is no such case
/// (all that it sent has arrived), nor is a slow network (something arrives all the time). Pure: no clock, no network.
class LineWatch {
  public:
    using Time = std::chrono::steady_clock::time_point;
    explicit LineWatch(std::chrono::milliseconds silence) : silence_(silence) {}

    struct Silent {
        int from = 0, to = 0;  // numbers of the nodes
        uint64_t missing = 0;  // bytes that were sent and have not arrived
        std::chrono::milliseconds time{};
    };
    /// What `node` says of its lines now. Returns a line to it that is silent.
    std::optional<Silent> report(int node, std::span<const LineEnd> lines, Time now);

  private:
    struct Direction {
        uint64_t sent = 0, received = 0;
        std::optional<Time> stuckSince;
    };
    const std::chrono::milliseconds silence_;
    std::map<std::pair<int, int>, Direction> directions_;  // by (from, to)
};

}  // namespace dllama
