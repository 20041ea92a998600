#pragma once

#include <sys/socket.h>

#include <array>
#include <atomic>
#include <list>
#include <mutex>
#include <string>
#include <thread>

#include "net/socket.hpp"

namespace dllama::test {

/// A line to a worker that can be cut: while it is, nothing passes and nobody is told, as when a cable is pulled.
class Relay {
  public:
    explicit Relay(Address target)
        : target_(std::move(target)), listener_({"127.0.0.1", 0}), thread_([this] { run(); }) {}
    ~Relay() {
        stopping_ = true;
        thread_.join();
    }
    Address address() const { return {"127.0.0.1", listener_.port()}; }
    void cut() { cut_ = true; }
    /// The next long message that passes arrives with one wrong bit in its last byte.
    void flipOneBit() { flip_ = true; }
    bool hasFlipped() const { return !flip_; }
    /// Bytes of one direction of the line that was made as the n-th (from 0) are lost from now on.
    void silence(int line, bool toTarget) { silent_ = 2 * line + (toTarget ? 1 : 0); }
    /// Once, to the next bytes of any line: one of them is changed, some of them are left out, or they are late.
    enum class Fault { None, Corrupt, Truncate, Delay };
    void disturb(Fault fault) { fault_ = fault; }
    /// Bytes that have passed, of all lines.
    size_t nPassed() const { return nPassed_; }
    /// What the first caller has sent, and what everybody has sent and received.
    std::string firstSent() const {
        const std::lock_guard lock(mutex_);
        return firstSent_;
    }
    std::string everything() const {
        const std::lock_guard lock(mutex_);
        return everything_;
    }

  private:
    struct Pair {
        Socket near, far;
        int number = 0;
    };

    void run() {
        while (!stopping_) {
            if (cut_) {
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
                continue;
            }
            if (std::optional<Incoming> incoming = listener_.accept(std::chrono::milliseconds(1))) try {
                    pairs_.push_back(
                        {std::move(incoming->socket), connectTcp(target_, after(std::chrono::seconds(5))), nPairs_++});
                } catch (const ConnectionError&) {
                    // Nobody listens there: the caller is hung up on.
                }
            pairs_.remove_if([this](Pair& p) {
                return !forward(p.near, p.far, p.number == 0, 2 * p.number + 1) ||
                       !forward(p.far, p.near, false, 2 * p.number);
            });
        }
    }

    /// False if the line has ended.
    bool forward(const Socket& from, const Socket& to, bool isFirst, int direction) {
        ssize_t n = ::recv(from.fd(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
        if (n == 0) return false;
        constexpr ssize_t kLong = 200;
        if (n > kLong && flip_.exchange(false)) buffer_[n - 1] ^= 1;
        if (n > 0) {
            const std::lock_guard lock(mutex_);
            everything_.append(buffer_.data(), static_cast<size_t>(n));
            if (isFirst) firstSent_.append(buffer_.data(), static_cast<size_t>(n));
            nPassed_ += static_cast<size_t>(n);
        }
        if (n > 0 && direction == silent_) return true;
        if (n > 0) switch (fault_.exchange(Fault::None)) {
                case Fault::Corrupt:
                    buffer_[static_cast<size_t>(n) / 2] ^= 0x10;
                    break;
                case Fault::Truncate:
                    n /= 2;
                    break;
                case Fault::Delay:
                    std::this_thread::sleep_for(std::chrono::milliseconds(700));
                    break;
                case Fault::None:
                    break;
            }
        for (ssize_t sent = 0; sent < n;) {
            const ssize_t m = ::send(to.fd(), buffer_.data() + sent, n - sent, MSG_NOSIGNAL);
            if (m < 0 && (errno != EAGAIN || stopping_)) return false;
            sent += std::max<ssize_t>(m, 0);
        }
        return true;
    }

    const Address target_;
    Listener listener_;
    std::list<Pair> pairs_;
    std::array<char, 65536> buffer_;
    int nPairs_ = 0;
    mutable std::mutex mutex_;
    std::string firstSent_, everything_;
    std::atomic<bool> stopping_{false}, cut_{false}, flip_{false};
    std::atomic<int> silent_{-1};
    std::atomic<size_t> nPassed_{0};
    std::atomic<Fault> fault_{Fault::None};
    std::thread thread_;
};

}  // namespace dllama::test
