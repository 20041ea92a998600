#pragma once

#include <functional>
#include <span>
#include <vector>

#include "net/connection.hpp"
#include "net/frame.hpp"

namespace dllama {

/// One frame to and one frame from a peer. Either may be absent (empty).
struct Transfer {
    int rank = 0;
    Connection* connection = nullptr;
    /// A whole frame, header included.
    std::span<const std::byte> out{};
    /// Room for a whole frame; `expected` says what its header must be.
    std::span<std::byte> in{};
    FrameHeader expected{};

    size_t nSent = 0;
    size_t nReceived = 0;
    bool done() const { return nSent == out.size() && nReceived == in.size(); }
};

/// Sends and receives all transfers side by side, so that no amount of data can block two ranks that send to each
/// other. Spins for a short while, then sleeps until data comes. Throws PeerLost naming the rank that is gone,
/// silent at the deadline, or sends another frame than the expected one: its line is of no more use.
///
/// While it waits it calls idle(), something useful that takes a microsecond or so, as long as that returns true.
void exchangeFrames(std::span<Transfer> transfers, Deadline deadline, const std::function<bool()>& idle = {});

}  // namespace dllama
