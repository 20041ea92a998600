#include "net/peer-listener.hpp"

#include "base/printable.hpp"

namespace dllama {

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
    while (!stopping_) {
        std::optional<Incoming> incoming = listener_.accept(std::chrono::milliseconds(100));
        for (auto it = hearings_.begin(); it != hearings_.end();) {
            if (!it->done) {
                ++it;
                continue;
            }
            it->thread.join();
            it = hearings_.erase(it);
        }
        if (!incoming) continue;
        if (static_cast<int>(hearings_.size()) >= options_.maxPending) {
            log_(fmt::format("refused {}: {} others are being heard", incoming->peer.text(), hearings_.size()));
            continue;
        }
        Hearing& hearing = hearings_.emplace_back();
        hearing.thread = std::thread([this, &hearing, moved = std::move(*incoming)]() mutable {
            hear(std::move(moved));
            hearing.done = true;
        });
    }
}

void PeerListener::hear(Incoming incoming) {
    try {
        handler_(greet(std::move(incoming), options_.secret, after(options_.handshakeLimit)));
    } catch (const std::exception& error) {
        log_(fmt::format("refused {}", printable(error.what())));
    }
}

}  // namespace dllama
