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
/// Whoever fails the handshake is logged in one line and forgotten. Where there is no room for one more (too many, no
/// thread, no descriptor, no memory), the one that has kept silent for the longest time goes, of the address that has
/// most of them: whoever knows the secret is done within milliseconds.
class PeerListener {
  public:
    struct Options {
        Address address;
        const Secret* secret = nullptr;  // outlives the listener
        std::chrono::milliseconds handshakeLimit{5000};
        /// Callers heard at the same time.
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
    enum class State { Greeting, Greeted, Dismissed, Done };
    struct Hearing {
        std::string host;
        Socket line;  // the caller's socket once more, to hang up by
        std::thread thread;
        std::atomic<State> state{State::Greeting};
    };

    void acceptLoop();
    void acceptOne(Incoming incoming);
    bool dismissOne();
    void joinThoseDone();
    void hear(Hearing& hearing, Incoming incoming);

    const Options options_;
    const Handler handler_;
    const Log log_;
    Listener listener_;
    std::atomic<bool> stopping_{false};
    std::list<Hearing> hearings_;  // the oldest first
    std::thread thread_;
};

}  // namespace dllama
