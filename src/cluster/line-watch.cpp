#include "cluster/line-watch.hpp"

#include <cstring>

#include "cluster/cluster-setup.hpp"

namespace dllama {

namespace {

constexpr size_t kLineBytes = 20;

}  // namespace

std::string encodeLines(std::span<const LineEnd> lines) {
    std::string payload(lines.size() * kLineBytes, '\0');
    char* p = payload.data();
    for (const LineEnd& line : lines) {
        const uint16_t words[2] = {static_cast<uint16_t>(line.peer), static_cast<uint16_t>(line.waiting)};
        std::memcpy(p, words, 4);
        std::memcpy(p + 4, &line.sent, 8);
        std::memcpy(p + 12, &line.received, 8);
        p += kLineBytes;
    }
    return payload;
}

std::optional<std::vector<LineEnd>> decodeLines(std::span<const std::byte> payload) {
    if (payload.size() % kLineBytes != 0) return std::nullopt;
    std::vector<LineEnd> lines(payload.size() / kLineBytes);
    const std::byte* p = payload.data();
    for (LineEnd& line : lines) {
        uint16_t words[2];
        std::memcpy(words, p, 4);
        line.peer = words[0];
        if (line.peer >= kMaxNodes) return std::nullopt;
        line.waiting = words[1] != 0;
        std::memcpy(&line.sent, p + 4, 8);
        std::memcpy(&line.received, p + 12, 8);
        p += kLineBytes;
    }
    return lines;
}

std::optional<LineWatch::Silent> LineWatch::report(int node, std::span<const LineEnd> lines, Time now) {
    std::optional<Silent> silent;
    for (const LineEnd& line : lines) {
        directions_[{node, line.peer}].sent = line.sent;
        Direction& in = directions_[{line.peer, node}];
        if (!line.waiting || line.received != in.received || line.received >= in.sent) {
            in.received = line.received;
            in.stuckSince.reset();
            continue;
        }
        if (!in.stuckSince) in.stuckSince = now;
        const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(now - *in.stuckSince);
        if (time > silence_) silent = Silent{line.peer, node, in.sent - in.received, time};
    }
    return silent;
}

}  // namespace dllama
