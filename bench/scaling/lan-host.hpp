#pragma once

#include <utility>

namespace dllama {

/// A file descriptor that is closed with its owner.
class Fd {
  public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd& operator=(Fd&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd();
    int get() const { return fd_; }

  private:
    int fd_;
};

/// A host of the emulated LAN: a network namespace with loopback and one interface, eth0, whose cable ends in this
/// process. It lives as long as `network` is open here or a process is in it.
struct LanHost {
    Fd network;  // for setns()
    /// A TAP device, not blocking. Each read and write is one frame behind a virtio_net_hdr. TCP hands over stretches
    /// of up to 64 KB at once, as to a network card that cuts them itself.
    Fd cable;
};

/// Host `number`, 1 to 200: 10.77.0.<number>/24, hardware address 02:00:00:00:00:<number>. The calling process stays in
/// its own network. Throws std::system_error, naming the step, where the system does not permit this.
LanHost makeLanHost(int number);

}  // namespace dllama
