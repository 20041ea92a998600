#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/errors.hpp"

namespace dllama {

using Clock = std::chrono::steady_clock;
/// Every operation on the network ends by a point in time.
using Deadline = Clock::time_point;

inline Deadline after(std::chrono::milliseconds time) {
    return Clock::now() + time;
}

/// The other end of a connection is gone, silent or unreachable. Whoever knows which rank it was makes it a PeerLost.
struct ConnectionError : Error {
    using Error::Error;
};

struct Address {
    std::string host;  // a name, an IPv4 address or an IPv6 address without brackets
    int port = 0;
    std::string text() const;
    bool operator==(const Address&) const = default;
};

/// "name:9999", "10.0.0.2:9999", "[fe80::1]:9999". Throws ConfigError.
Address parseAddress(const std::string& text);

/// A file descriptor that closes itself.
class Socket {
  public:
    Socket() = default;
    explicit Socket(int fd) : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Socket();
    int fd() const { return fd_; }

  private:
    int fd_ = -1;
};

/// A non-blocking socket, ready for small messages. Throws ConnectionError.
Socket connectTcp(const Address& address, Deadline deadline);

struct Incoming {
    Socket socket;
    Address peer;
};

/// Listens on one address. accept() may run while another thread calls port().
class Listener {
  public:
    /// Port 0: any free one. Throws ConfigError if the address cannot be used.
    explicit Listener(const Address& address);
    ~Listener();
    int port() const;
    /// True if other machines can reach it.
    bool isPublic() const;
    /// Waits up to `time` for a connection. Throws ConnectionError if one is there, but no descriptor or memory for it.
    std::optional<Incoming> accept(std::chrono::milliseconds time);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace dllama
