#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "net/socket.hpp"

namespace dllama {

/// How long a rank looks for data before it sleeps. A peer that is one layer's work behind answers within this time on
/// a fast network; spinning longer would take the core from those who have work.
constexpr std::chrono::microseconds kSpin{50};

/// A stream of bytes to one peer, plain or by TLS. Any thread may send and any thread may receive, but only one each
/// at a time; shutdown() may be called from everywhere.
class Connection {
  public:
    Connection(Socket socket, std::string peer) : socket_(std::move(socket)), peer_(std::move(peer)) {}
    virtual ~Connection() = default;
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    /// Bytes that were taken; 0: not now. Throws ConnectionError when the peer is gone.
    virtual size_t trySend(std::span<const std::byte> bytes) = 0;
    /// Bytes that were put into `bytes`; 0: not now. Throws ConnectionError when the peer is gone.
    virtual size_t tryReceive(std::span<std::byte> bytes) = 0;

    /// All of them by the deadline. Throws ConnectionError.
    void send(std::span<const std::byte> bytes, Deadline deadline);
    void receive(std::span<std::byte> bytes, Deadline deadline);

    /// Ends every operation, of this and of other threads, with a ConnectionError.
    void shutdown() noexcept;

    /// Whether somebody waits for bytes of the peer.
    bool isWaiting() const { return waiting_.load(std::memory_order_relaxed); }
    void setWaiting(bool waiting) { waiting_.store(waiting, std::memory_order_relaxed); }

    int fd() const { return socket_.fd(); }
    const std::string& peer() const { return peer_; }
    uint64_t bytesSent() const { return sent_.load(std::memory_order_relaxed); }
    uint64_t bytesReceived() const { return received_.load(std::memory_order_relaxed); }

  protected:
    void wait(short events, Deadline deadline, const char* doing);

    Socket socket_;
    std::string peer_;
    std::atomic<uint64_t> sent_{0};
    std::atomic<uint64_t> received_{0};

  private:
    std::atomic<bool> waiting_{false};
};

/// TCP as it is.
class PlainConnection final : public Connection {
  public:
    using Connection::Connection;
    size_t trySend(std::span<const std::byte> bytes) override;
    size_t tryReceive(std::span<std::byte> bytes) override;
};

}  // namespace dllama
