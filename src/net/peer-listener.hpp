#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <string>
#include <thread>

#include "net/handshake.hpp"

namespace dllama {

/// One line that says what happened; called from several threads.
using Log = std::function<void(const std::string& line)>;

/// Listens and hears out every caller, each in a short-lived thread, so that silent or hostile callers hinder nobody.
/// Whoever fails the handshake is logged in one line and forgotten.
class PeerListener {
  public:
    struct Options {
        Address address;
        const Secret* secret = nullptr;  // outlives the listener
        std::chrono::milliseconds handshakeLimit{5000};
        /// Callers heard at the same time; more are turned away at once.
        int maxPending = 64;
    };
    /// Is given each caller that knows the secret; must answer it by welcome() or refuse() and return soon. An
    /// exception it throws is logged.
    using Handler = std::function<void(Caller caller)>;

    PeerListener(Options options, Handler handler, Log log);
    /// Waits for the callers being heard.
    ~PeerListener();
    int port() const { return listener_.port(); }
    bool isPublic() const { return listener_.isPublic(); }

  private:
    struct Hearing {
        std::thread thread;
        std::atomic<bool> done{false};
    };

    void acceptLoop();
    void hear(Incoming incoming);

    const Options options_;
    const Handler handler_;
    const Log log_;
    Listener listener_;
    std::atomic<bool> stopping_{false};
    std::list<Hearing> hearings_;
    std::thread thread_;
};

}  // namespace dllama
