#include "net/peer-listener.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>

#include "base/printable.hpp"

namespace dllama {

namespace {

/// How long nobody is let in where the system has no more descriptors or memory, and how often that is told.
constexpr std::chrono::milliseconds kRest{50}, kTellAgain{5000};

}  // namespace

PeerListener::PeerListener(Options options, Handler handler, Log log)
    : options_(std::move(options)), handler_(std::move(handler)), log_(std::move(log)), listener_(options_.address) {
    thread_ = std::thread([this] { acceptLoop(); });
}

PeerListener::~PeerListener() {
    stopping_ = true;
    thread_.join();
    for (Hearing& hearing : hearings_) hearing.thread.join();
}

void PeerListener::acceptLoop() {
    Clock::time_point tellAgain{};
    while (!stopping_) {
        try {
            std::optional<Incoming> incoming = listener_.accept(std::chrono::milliseconds(100));
            joinThoseDone();
            if (incoming) acceptOne(std::move(*incoming));
        } catch (const std::exception& error) {
            // The caller stays where it is, in the system's queue, until there is room.
            const bool dismissed = dismissOne();
            if (Clock::now() >= tellAgain) log_(fmt::format("callers have to wait: {}", printable(error.what())));
            tellAgain = Clock::now() + kTellAgain;
            if (!dismissed) std::this_thread::sleep_for(kRest);
        }
    }
}

void PeerListener::joinThoseDone() {
    for (auto it = hearings_.begin(); it != hearings_.end();) {
        if (it->state != State::Done) {
            ++it;
            continue;
        }
        it->thread.join();
        it = hearings_.erase(it);
    }
}

void PeerListener::acceptOne(Incoming incoming) {
    const auto nGreeting = std::count_if(hearings_.begin(), hearings_.end(),
                                         [](const Hearing& hearing) { return hearing.state == State::Greeting; });
    // Those that were sent away need a moment to go.
    const bool crowded = hearings_.size() >= 2 * static_cast<size_t>(options_.maxPending);
    if (crowded || (nGreeting >= options_.maxPending && !dismissOne())) {
        log_(fmt::format("refused {}: {} others are being heard", incoming.peer.text(), hearings_.size()));
        return;
    }
    const std::string peer = incoming.peer.text();
    Hearing& hearing = hearings_.emplace_back();
    try {
        hearing.host = incoming.peer.host;
        hearing.line = Socket(::fcntl(incoming.socket.fd(), F_DUPFD_CLOEXEC, 0));
        if (hearing.line.fd() < 0) throw std::system_error(errno, std::generic_category());
        hearing.thread =
            std::thread([this, &hearing, moved = std::move(incoming)]() mutable { hear(hearing, std::move(moved)); });
    } catch (const std::exception& error) {
        hearings_.pop_back();
        dismissOne();
        log_(fmt::format("refused {}: no thread or descriptor for it ({})", peer, error.what()));
    }
}

/// Hangs up on the caller that is to make room for another; false if all are let in already.
bool PeerListener::dismissOne() {
    std::map<std::string_view, int> ofHost;
    for (const Hearing& hearing : hearings_)
        if (hearing.state == State::Greeting) ofHost[hearing.host]++;
    const auto most = std::max_element(ofHost.begin(), ofHost.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (most == ofHost.end()) return false;
    for (Hearing& hearing : hearings_) {
        State greeting = State::Greeting;
        if (hearing.host != most->first || !hearing.state.compare_exchange_strong(greeting, State::Dismissed)) continue;
        ::shutdown(hearing.line.fd(), SHUT_RDWR);
        return true;
    }
    return false;
}

void PeerListener::hear(Hearing& hearing, Incoming incoming) {
    const std::string peer = incoming.peer.text();
    // Either it is dismissed, or from here on it cannot be: each caller is told of once.
    const auto isHeard = [&hearing] {
        State greeting = State::Greeting;
        return hearing.state.compare_exchange_strong(greeting, State::Greeted) || greeting == State::Greeted;
    };
    try {
        Caller caller = greet(std::move(incoming), options_.secret, after(options_.handshakeLimit));
        if (isHeard()) handler_(std::move(caller));
    } catch (const std::exception& error) {
        if (isHeard()) log_(fmt::format("refused {}", printable(error.what())));
    }
    if (hearing.state == State::Dismissed) log_(fmt::format("refused {}: it made room for others", peer));
    hearing.state = State::Done;
}

}  // namespace dllama
