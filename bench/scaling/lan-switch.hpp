#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace dllama {

/// Every cable of the LAN, in each direction.
struct LinkSpeed {
    double bytesPerUs = 125.0;
    double delayUs = 100.0;  // one way, beside the time that the bytes take
    /// What the switch keeps for a port that is busy; what comes on top is lost.
    size_t bufferBytes = 512 << 10;
};

/// An Ethernet switch. A frame takes its time on the sender's cable, then, one segment of 1,500 bytes behind, on the
/// receiver's, then the delay:
///
///     sender    |--seg--|--seg--|--seg--|
///     receiver          |--seg--|--seg--|--seg--|-- delay --> delivered
///
/// Segments that TCP handed over together travel together.
class LanSwitch {
  public:
    struct Statistics {
        uint64_t frames = 0, bytes = 0, lost = 0;
        double lateP50Us = 0.0, lateP99Us = 0.0;  // deliveries behind the time they were due
    };

    /// Port i is cables[i], which belongs to the host of number i + 1 (see LanHost).
    LanSwitch(std::vector<int> cables, const LinkSpeed& speed) : speed_(speed) {
        for (int cable : cables) ports_.push_back({cable, 0.0, 0.0, {}});
    }

    /// Until `stop`. Spinning needs a core of its own; otherwise it sleeps while there is nothing to do. While
    /// `unlimited`, frames are passed on at once.
    void run(const std::atomic<bool>& stop, const std::atomic<bool>& unlimited, bool spin);

    Statistics statistics() const;

  private:
    /// 64 KB of payload and what is before it.
    static constexpr size_t kLargestFrame = (64 << 10) + 256;

    struct Frame {
        double dueUs;
        std::vector<std::byte> bytes;
    };
    struct Port {
        int cable;
        double upUntilUs, downUntilUs;  // the cable is busy that long
        std::deque<Frame> waiting;      // for delivery, in order of time
    };

    bool receive(Port& from, bool unlimited);
    /// `frame` reaches the switch's port at `arrivalUs` and needs `wireUs` on the cable.
    void forward(Port& to, const std::byte* frame, size_t size, double arrivalUs, double wireUs, bool unlimited);
    bool deliver(Port& to);
    void sleep() const;

    const LinkSpeed speed_;
    std::vector<Port> ports_;
    std::vector<std::vector<std::byte>> spare_;
    std::vector<std::byte> frame_ = std::vector<std::byte>(kLargestFrame);
    Statistics counted_;
    std::array<uint64_t, 1001> lateUs_{};  // deliveries by whole microseconds; the last: all above
};

}  // namespace dllama
