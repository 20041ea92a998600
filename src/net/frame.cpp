#include "net/frame.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/printable.hpp"

namespace dllama {

namespace {

constexpr size_t KiB = 1024, MiB = 1024 * KiB;
constexpr size_t kSealed = 16;  // bytes of the header that the checksum covers

uint64_t checksumOf(const std::byte* header, std::span<const std::byte> payload) {
    return XXH3_64bits_withSeed(payload.data(), payload.size(), XXH3_64bits(header, kSealed));
}

}  // namespace

size_t maxPayload(FrameType type) {
    switch (type) {
        case FrameType::Hello:
        case FrameType::Welcome:
        case FrameType::Holdings:
            return 4 * KiB;
        case FrameType::Setup:
            return 8 * MiB;
        case FrameType::Slice:
            return 16 + MiB;
        case FrameType::SliceHash:
        case FrameType::Progress:
        case FrameType::Start:
            return 16;
        case FrameType::Ready:
        case FrameType::Heartbeat:
            return 0;
        case FrameType::Batch:
        case FrameType::Part:
        case FrameType::Rows:
            return 1024 * MiB;
        case FrameType::Probe:
            return 64 * KiB;
        case FrameType::Failure:
            return 4 * KiB;
        case FrameType::Statistics:
            return 64 * KiB;
        case FrameType::Lines:
            return 4 * KiB;
    }
    return 0;
}

void writeHeader(const FrameHeader& header, std::span<std::byte> to) {
    std::byte* p = to.data();
    std::memcpy(p, &header.session, 4);
    std::memcpy(p + 4, &header.sequence, 4);
    std::memcpy(p + 8, &header.type, 2);
    std::memcpy(p + 10, &header.flags, 2);
    std::memcpy(p + 12, &header.length, 4);
}

void sealFrame(std::span<std::byte> frame) {
    const uint64_t checksum = checksumOf(frame.data(), frame.subspan(kFrameHeaderBytes));
    std::memcpy(frame.data() + kSealed, &checksum, sizeof checksum);
}

void checkSeal(std::span<const std::byte, kFrameHeaderBytes> header, std::span<const std::byte> payload,
               const std::string& peer) {
    uint64_t stated = 0;
    std::memcpy(&stated, header.data() + kSealed, sizeof stated);
    if (checksumOf(header.data(), payload) != stated)
        throw ConnectionError("{}: a frame of {} bytes arrived damaged", peer, payload.size());
}

FrameHeader readHeader(std::span<const std::byte, kFrameHeaderBytes> from, const std::string& peer) {
    FrameHeader header;
    const std::byte* p = from.data();
    std::memcpy(&header.session, p, 4);
    std::memcpy(&header.sequence, p + 4, 4);
    std::memcpy(&header.type, p + 8, 2);
    std::memcpy(&header.flags, p + 10, 2);
    std::memcpy(&header.length, p + 12, 4);
    if (header.type < FrameType::Hello || header.type > FrameType::Lines)
        throw ProtocolError("{}: frame type {} is not known", peer, static_cast<int>(header.type));
    if (header.length > maxPayload(header.type))
        throw ProtocolError("{}: a frame of type {} announces {} bytes, the limit is {}", peer,
                            static_cast<int>(header.type), header.length, maxPayload(header.type));
    if (header.flags != 0) throw ProtocolError("{}: frame flags {} are not known", peer, header.flags);
    return header;
}

void expectFrame(const FrameHeader& header, FrameType type, uint32_t session, uint32_t sequence,
                 const std::string& peer) {
    if (header.type != type || header.session != session || header.sequence != sequence)
        throw ProtocolError("{}: frame of type {}, session {:08x}, sequence {} where {}, {:08x}, {} is due", peer,
                            static_cast<int>(header.type), header.session, header.sequence, static_cast<int>(type),
                            session, sequence);
}

void sendFrame(Connection& connection, uint32_t session, FrameType type, std::span<const std::byte> payload,
               Deadline deadline) {
    // A model file decides how long a setup gets.
    if (payload.size() > maxPayload(type))
        throw ConfigError("{}: a message of type {} would have {} bytes, the limit is {}", connection.peer(),
                          static_cast<int>(type), payload.size(), maxPayload(type));
    std::vector<std::byte> bytes(kFrameHeaderBytes + payload.size());
    writeHeader({session, 0, type, 0, static_cast<uint32_t>(payload.size())}, bytes);
    if (!payload.empty()) std::memcpy(bytes.data() + kFrameHeaderBytes, payload.data(), payload.size());
    sealFrame(bytes);
    connection.send(bytes, deadline);
}

void sendFrame(Connection& connection, uint32_t session, FrameType type, std::string_view text, Deadline deadline) {
    sendFrame(connection, session, type, std::as_bytes(std::span(text.data(), text.size())), deadline);
}

Frame receiveFrame(Connection& connection, uint32_t session, std::initializer_list<FrameType> allowed,
                   Deadline deadline, size_t limit) {
    std::array<std::byte, kFrameHeaderBytes> bytes;
    connection.receive(bytes, deadline);
    const FrameHeader header = readHeader(bytes, connection.peer());
    const bool isAllowed = std::find(allowed.begin(), allowed.end(), header.type) != allowed.end();
    if (!isAllowed && header.type != FrameType::Failure)
        throw ProtocolError("{}: frame of type {} where {} is due", connection.peer(), static_cast<int>(header.type),
                            static_cast<int>(*allowed.begin()));
    expectFrame(header, header.type, session, 0, connection.peer());
    if (header.length > limit)
        throw ProtocolError("{}: a frame of type {} announces {} bytes, the limit is {}", connection.peer(),
                            static_cast<int>(header.type), header.length, limit);
    Frame frame{header.type, std::vector<std::byte>(header.length)};
    connection.receive(frame.payload, deadline);
    checkSeal(bytes, frame.payload, connection.peer());
    if (!isAllowed) throw ConnectionError("{}: {}", connection.peer(), printable(frame.text()));
    return frame;
}

}  // namespace dllama
