#include "lan-switch.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <numeric>

namespace dllama {

namespace {

/// What a TAP device puts before each frame: virtio_net_hdr, whose Linux header is not C++.
struct VnetHeader {
    uint8_t flags, gsoType;
    uint16_t headerBytes, segmentBytes;  // if gsoType: headers, and payload of each segment but the last
    uint16_t checksumStart, checksumOffset;
};
static_assert(sizeof(VnetHeader) == 10);

constexpr size_t kHeader = sizeof(VnetHeader);
constexpr size_t kEthernetHeader = 14;
/// Checksum, preamble and the gap between frames: on the cable, but not in the frame.
constexpr size_t kAroundFrame = 24;
constexpr size_t kShortestFrame = 60;
/// A frame is taken from its sender so long before the cable is free: its queue waits where TCP sees it.
constexpr double kAheadUs = 50.0;
/// Timers wake late by about as much: the switch sleeps until so long before a frame is due, and spins then.
constexpr double kWakeUs = 50.0;

double nowUs() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// What a frame, which may be several segments, occupies a cable with.
struct WireBytes {
    size_t all, firstSegment;
};

WireBytes wireBytes(const VnetHeader& header, size_t bytes) {
    size_t segments = 1, largest = bytes;
    if (header.gsoType != 0 && header.segmentBytes > 0 && bytes > header.headerBytes) {
        segments = (bytes - header.headerBytes + header.segmentBytes - 1) / header.segmentBytes;
        largest = std::min<size_t>(bytes, size_t{header.headerBytes} + header.segmentBytes);
    }
    // Each segment repeats the headers.
    const size_t all = std::max(bytes + (segments - 1) * header.headerBytes, kShortestFrame) + segments * kAroundFrame;
    return {all, std::max(largest, kShortestFrame) + kAroundFrame};
}

}  // namespace

void LanSwitch::run(const std::atomic<bool>& stop, const std::atomic<bool>& unlimited, bool spin) {
    while (!stop) {
        bool moved = false;
        for (Port& port : ports_) {
            moved |= receive(port, unlimited);
            moved |= deliver(port);
        }
        if (!moved && !spin) sleep();
    }
}

bool LanSwitch::receive(Port& from, bool unlimited) {
    const double now = nowUs();
    if (from.upUntilUs > now + kAheadUs) return false;
    const ssize_t size = read(from.cable, frame_.data(), frame_.size());
    if (size < static_cast<ssize_t>(kHeader + kEthernetHeader)) return false;

    VnetHeader header;
    std::memcpy(&header, frame_.data(), kHeader);
    const WireBytes wire = wireBytes(header, static_cast<size_t>(size) - kHeader);
    const double wireUs = static_cast<double>(wire.all) / speed_.bytesPerUs;
    const double start = std::max(now, from.upUntilUs);
    const double arrival = start + static_cast<double>(wire.firstSegment) / speed_.bytesPerUs;
    from.upUntilUs = unlimited ? now : start + wireUs;

    // The last byte of a host's hardware address is its number. Broadcasts (ARP) go to all, multicasts to nobody.
    const auto* address = reinterpret_cast<const unsigned char*>(frame_.data()) + kHeader;
    const size_t number = address[0] == 2 ? address[5] : 0;
    if (number >= 1 && number <= ports_.size())
        forward(ports_[number - 1], frame_.data(), static_cast<size_t>(size), arrival, wireUs, unlimited);
    else if (address[0] == 0xff)
        for (Port& to : ports_)
            if (&to != &from) forward(to, frame_.data(), static_cast<size_t>(size), arrival, wireUs, unlimited);
    return true;
}

void LanSwitch::forward(Port& to, const std::byte* frame, size_t size, double arrivalUs, double wireUs,
                        bool unlimited) {
    if (unlimited) arrivalUs = wireUs = 0.0;
    const double backlog = (to.downUntilUs - arrivalUs) * speed_.bytesPerUs;
    if (!unlimited && backlog > static_cast<double>(speed_.bufferBytes)) {
        counted_.lost++;
        return;
    }
    counted_.frames++;
    counted_.bytes += size - kHeader;
    to.downUntilUs = std::max(to.downUntilUs, arrivalUs) + wireUs;
    std::vector<std::byte> bytes;
    if (!spare_.empty()) {
        bytes = std::move(spare_.back());
        spare_.pop_back();
    }
    bytes.assign(frame, frame + size);
    to.waiting.push_back({unlimited ? nowUs() : to.downUntilUs + speed_.delayUs, std::move(bytes)});
}

bool LanSwitch::deliver(Port& to) {
    bool moved = false;
    while (!to.waiting.empty()) {
        Frame& frame = to.waiting.front();
        const double late = nowUs() - frame.dueUs;
        if (late < 0.0) break;
        lateUs_[std::min(static_cast<size_t>(late), lateUs_.size() - 1)]++;
        if (write(to.cable, frame.bytes.data(), frame.bytes.size()) < 0) counted_.lost++;
        spare_.push_back(std::move(frame.bytes));
        to.waiting.pop_front();
        moved = true;
    }
    return moved;
}

/// Until a frame comes in, a frame is due, or a cable that kept its sender waiting is free.
void LanSwitch::sleep() const {
    const double now = nowUs();
    double until = now + 100'000.0;
    std::vector<pollfd> cables;
    for (const Port& port : ports_) {
        if (!port.waiting.empty()) until = std::min(until, port.waiting.front().dueUs);
        const double open = port.upUntilUs - kAheadUs;
        if (open > now)
            until = std::min(until, open);
        else
            cables.push_back({port.cable, POLLIN, 0});
    }
    if (until < now + kWakeUs) return;
    const auto ns = static_cast<long>((until - now - kWakeUs) * 1000.0);
    const timespec limit = {ns / 1'000'000'000, ns % 1'000'000'000};
    ppoll(cables.data(), cables.size(), &limit, nullptr);
}

LanSwitch::Statistics LanSwitch::statistics() const {
    Statistics result = counted_;
    const uint64_t all = std::accumulate(lateUs_.begin(), lateUs_.end(), uint64_t{0});
    const auto quantile = [&](double share) {
        uint64_t passed = 0;
        for (size_t us = 0; us < lateUs_.size(); us++)
            if ((passed += lateUs_[us]) >= share * static_cast<double>(all)) return static_cast<double>(us);
        return 0.0;
    };
    result.lateP50Us = quantile(0.5);
    result.lateP99Us = quantile(0.99);
    return result;
}

}  // namespace dllama
