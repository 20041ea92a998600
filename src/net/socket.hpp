#pragma once

#include <sys/socket.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

/// Where a worker listens if nobody says otherwise.
constexpr int kWorkerPort = 9999;

/// "name:9999", "10.0.0.2:9999", "[fe80::1]:9999"; without a port a worker's. Throws ConfigError.
Address parseAddress(const std::string& text);

/// True for "localhost" and the addresses 127.0.0.0/8 and ::1: nobody else's machine, whatever name servers say. A name
/// that merely begins so (127.example.org) may be anyone's.
bool isLoopback(const std::string& host);

/// True if the host, a name or a number, is this machine by any of its addresses. False too if no name server knows it
/// within 2 s.
bool isThisMachine(const std::string& host);

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

/// An address as connect() wants it.
struct Endpoint {
    sockaddr_storage storage{};
    socklen_t length = 0;
};
/// The endpoints of a name, best first. Throws ConnectionError.
std::vector<Endpoint> lookUp(const Address& address);

/// A non-blocking socket, ready for small messages. Throws ConnectionError, by the deadline even if no name server
/// answers
/// (`lookup` then goes on in a thread of its own). Where a name has several addresses the next one is tried as well
/// when one has not answered for a quarter of a second, and the first to answer is taken (RFC 8305).
Socket connectTcp(const Address& address, Deadline deadline,
                  const std::function<std::vector<Endpoint>(const Address&)>& lookup = lookUp);

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
