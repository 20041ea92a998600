#include "net/connection.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace dllama {

void Connection::wait(short events, Deadline deadline, const char* doing) {
    // One more millisecond than is left, so that waiting ends behind the deadline and not just before it.
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left < 0) throw ConnectionError("{}: no answer in time while {}", peer_, doing);
    pollfd waiting{fd(), events, 0};
    ::poll(&waiting, 1, static_cast<int>(std::min<long long>(left + 1, 60'000)));
}

void Connection::send(std::span<const std::byte> bytes, Deadline deadline) {
    while (!bytes.empty()) {
        const size_t n = trySend(bytes);
        bytes = bytes.subspan(n);
        if (n == 0) wait(POLLOUT, deadline, "sending");
    }
}

void Connection::receive(std::span<std::byte> bytes, Deadline deadline) {
    const Deadline spinUntil = Clock::now() + kSpin;
    struct Waits {
        Connection& connection;
        ~Waits() { connection.setWaiting(false); }
    } waits{*this};
    while (!bytes.empty()) {
        const size_t n = tryReceive(bytes);
        bytes = bytes.subspan(n);
        if (n > 0 || Clock::now() <= spinUntil) continue;
        setWaiting(true);
        wait(POLLIN, deadline, "receiving");
    }
}

void Connection::shutdown() noexcept {
    ::shutdown(fd(), SHUT_RDWR);
}

size_t PlainConnection::trySend(std::span<const std::byte> bytes) {
    const ssize_t n = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR) return 0;
        throw ConnectionError("{}: {}", peer_, std::strerror(errno));
    }
    sent_.fetch_add(n, std::memory_order_relaxed);
    return static_cast<size_t>(n);
}

size_t PlainConnection::tryReceive(std::span<std::byte> bytes) {
    const ssize_t n = ::recv(fd(), bytes.data(), bytes.size(), 0);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR) return 0;
        throw ConnectionError("{}: {}", peer_, std::strerror(errno));
    }
    if (n == 0) throw ConnectionError("{}: closed the connection", peer_);
    received_.fetch_add(n, std::memory_order_relaxed);
    return static_cast<size_t>(n);
}

}  // namespace dllama
