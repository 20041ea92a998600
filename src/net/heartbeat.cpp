#include "net/heartbeat.hpp"

#include <poll.h>

namespace dllama {

namespace {

constexpr std::chrono::milliseconds kSendLimit{100};

}  // namespace

Heartbeat::Heartbeat(const Options& options, Lost lost, Received received, Report report)
    : options_(options), lost_(std::move(lost)), received_(std::move(received)), report_(std::move(report)) {
    thread_ = std::thread([this] { loop(); });
}

Heartbeat::~Heartbeat() {
    stopping_ = true;
    thread_.join();
}

void Heartbeat::add(const Peer& peer) {
    const std::lock_guard lock(mutex_);
    Line& line = lines_.emplace_back();
    line.peer = peer;
    line.heard = Clock::now();
}

void Heartbeat::send(int node, FrameType type, std::string_view text) {
    const std::lock_guard lock(mutex_);
    for (const Line& line : lines_) {
        if (line.peer.node != node) continue;
        try {
            sendFrame(*line.peer.connection, options_.session, type, text, after(kSendLimit));
        } catch (const ConnectionError&) {
            // Its silence will be noticed.
        }
    }
}

void Heartbeat::loop() {
    Clock::time_point nextBeat = Clock::now();
    std::vector<Line*> living;
    std::vector<pollfd> waiting;
    while (!stopping_) {
        living.clear();
        waiting.clear();
        {
            const std::lock_guard lock(mutex_);
            for (Line& line : lines_)
                if (!line.lost) living.push_back(&line);
        }
        if (Clock::now() >= nextBeat) {
            const std::string report = report_ ? report_() : "";
            const FrameType type = report_ ? FrameType::Lines : FrameType::Heartbeat;
            for (const Line* line : living) send(line->peer.node, type, report);
            nextBeat = Clock::now() + options_.interval;
        }
        for (const Line* line : living) waiting.push_back({line->peer.connection->fd(), POLLIN, 0});
        // Short enough to end soon when asked to, and to see a new peer.
        ::poll(waiting.data(), waiting.size(), 50);
        for (Line* line : living) listen(*line);
    }
}

void Heartbeat::listen(Line& line) {
    std::string reason;
    try {
        Frame frame;
        while (receiveSome(line, frame))
            if (frame.type != FrameType::Heartbeat) received_(line.peer.node, frame);
    } catch (const Error& error) {
        reason = error.what();
    }
    const auto silent = Clock::now() - line.heard;
    if (reason.empty() && silent > options_.silence)
        reason = fmt::format("{}: no sign of life for {} ms", line.peer.connection->peer(),
                             std::chrono::duration_cast<std::chrono::milliseconds>(silent).count());
    if (reason.empty()) return;
    line.lost = true;
    lost_(line.peer.node, reason);
}

/// True if a frame is complete.
bool Heartbeat::receiveSome(Line& line, Frame& frame) {
    Connection& connection = *line.peer.connection;
    for (;;) {
        const bool inHeader = line.nReceived < kFrameHeaderBytes;
        const size_t inPayload = inHeader ? 0 : line.nReceived - kFrameHeaderBytes;
        if (!inHeader && inPayload == line.payload.size()) {
            checkSeal(line.header, line.payload, connection.peer());
            frame.type = readHeader(line.header, connection.peer()).type;
            frame.payload = std::move(line.payload);
            line.payload.clear();
            line.nReceived = 0;
            return true;
        }
        const size_t n = inHeader ? connection.tryReceive(std::span(line.header).subspan(line.nReceived))
                                  : connection.tryReceive(std::span(line.payload).subspan(inPayload));
        if (n == 0) return false;
        line.heard = Clock::now();
        line.nReceived += n;
        if (!inHeader || line.nReceived < kFrameHeaderBytes) continue;
        const FrameHeader header = readHeader(line.header, connection.peer());
        if (header.type != FrameType::Heartbeat && header.type != FrameType::Failure &&
            header.type != FrameType::Statistics && header.type != FrameType::Lines)
            throw ProtocolError("{}: frame of type {} on the control line", connection.peer(),
                                static_cast<int>(header.type));
        expectFrame(header, header.type, options_.session, 0, connection.peer());
        line.payload.resize(header.length);
    }
}

}  // namespace dllama
