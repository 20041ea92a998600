#include "net/exchange.hpp"

#include <poll.h>

#include <algorithm>

namespace dllama {

namespace {

/// However an exchange ends, nobody waits any more.
struct EndOfWaiting {
    std::span<Transfer> transfers;
    ~EndOfWaiting() {
        for (const Transfer& t : transfers) t.connection->setWaiting(false);
    }
};

/// Moves what can be moved now. True if anything was.
bool advance(Transfer& t) {
    const size_t sent = t.nSent, received = t.nReceived;
    if (t.nSent < t.out.size()) t.nSent += t.connection->trySend(t.out.subspan(t.nSent));
    if (t.nReceived < t.in.size()) {
        t.nReceived += t.connection->tryReceive(t.in.subspan(t.nReceived));
        if (received < kFrameHeaderBytes && t.nReceived >= kFrameHeaderBytes) {
            const auto bytes = std::span<const std::byte>(t.in).first<kFrameHeaderBytes>();
            const FrameHeader header = readHeader(bytes, t.connection->peer());
            expectFrame(header, t.expected.type, t.expected.session, t.expected.sequence, t.connection->peer());
            if (header.length != t.expected.length)
                throw ProtocolError("{}: a part of {} bytes where {} are due", t.connection->peer(), header.length,
                                    t.expected.length);
        }
    }
    if (t.nReceived == t.in.size() && t.nReceived != received)
        checkSeal(std::span<const std::byte>(t.in).first<kFrameHeaderBytes>(), t.in.subspan(kFrameHeaderBytes),
                  t.connection->peer());
    return t.nSent != sent || t.nReceived != received;
}

void sleepUntilReady(std::span<Transfer> transfers, std::vector<pollfd>& waiting, Deadline deadline) {
    waiting.clear();
    for (const Transfer& t : transfers) {
        if (t.done()) continue;
        short events = 0;
        if (t.nReceived < t.in.size()) {
            events |= POLLIN;
            t.connection->setWaiting(true);
        }
        if (t.nSent < t.out.size()) events |= POLLOUT;
        waiting.push_back({t.connection->fd(), events, 0});
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    ::poll(waiting.data(), waiting.size(), static_cast<int>(std::clamp<long long>(left + 1, 0, 1000)));
}

}  // namespace

void exchangeFrames(std::span<Transfer> transfers, Deadline deadline, const std::function<bool()>& idle) {
    std::vector<pollfd> waiting;
    const EndOfWaiting endOfWaiting{transfers};
    bool idling = static_cast<bool>(idle);
    Deadline spinUntil = Clock::now() + kSpin;
    for (;;) {
        bool moved = false;
        const Transfer* unfinished = nullptr;
        for (Transfer& t : transfers) {
            if (t.done()) continue;
            try {
                moved |= advance(t);
            } catch (const ConnectionError& error) {
                throw PeerLost(t.rank, "{}", error.what());
            } catch (const ProtocolError& error) {
                throw PeerLost(t.rank, "{}", error.what());
            }
            if (!t.done()) unfinished = &t;
        }
        if (unfinished == nullptr) return;
        if (!moved && idling) {
            idling = idle();
            spinUntil = Clock::now() + kSpin;
            continue;
        }
        const Clock::time_point now = Clock::now();
        if (moved) {
            spinUntil = now + kSpin;
        } else if (now > deadline) {
            throw PeerLost(unfinished->rank, "{}: no answer in time", unfinished->connection->peer());
        } else if (now > spinUntil) {
            sleepUntilReady(transfers, waiting, deadline);
        }
    }
}

}  // namespace dllama
