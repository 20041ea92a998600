#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "net/connection.hpp"

/// Everything between root and workers travels in frames: 24 bytes of header (little-endian) and a payload.
///
///     0  u32 session    lower half of the session id: a frame of an earlier session is refused
///     4  u32 sequence   number of the collective (Part, Rows), else 0
///     8  u16 type
///    10  u16 flags      0
///    12  u32 length     of the payload; at most maxPayload(type)
///    16  u64 checksum   XXH3 of the payload, seeded by the XXH3 of the 16 bytes before
namespace dllama {

enum class FrameType : uint16_t {
    Hello = 1,   // JSON: who connects, and what for
    Welcome,     // JSON: the answer
    Setup,       // JSON: model, plan, limits, addresses
    Holdings,    // JSON: whether the worker has its slices, and whether the root takes them
    Slice,       // u32 index, u32 0, u64 offset, bytes of one weight slice
    SliceHash,   // u32 index, u32 0, u64 XXH3 of the slice
    Progress,    // u64 done, u64 total: bytes of weights laid out
    Ready,       // the worker can compute
    Start,       // f64 latency in us, f64 bytes per us: what collectives choose their algorithm by
    Batch,       // a step's inputs
    Part,        // a rank's part of an all-reduce
    Rows,        // a rank's part of a gather; empty from the root: bring the last step's logits
    Probe,       // bytes of no meaning, to measure the line
    Heartbeat,   // I am alive
    Failure,     // text: why this side gives up
    Statistics,  // JSON: what a worker measured
    Lines,       // how much each data line of a worker has carried; also a heartbeat
};

constexpr size_t kFrameHeaderBytes = 24;

struct FrameHeader {
    uint32_t session = 0;
    uint32_t sequence = 0;
    FrameType type{};
    uint16_t flags = 0;
    uint32_t length = 0;
};

/// Most bytes that a frame of this type may announce; 0 for a type that does not exist.
size_t maxPayload(FrameType type);

/// Writes all but the checksum.
void writeHeader(const FrameHeader& header, std::span<std::byte> to);
/// Adds the checksum to a whole frame, whose payload is complete.
void sealFrame(std::span<std::byte> frame);
/// Throws ConnectionError, naming `peer`, if the frame has changed on its way: TCP's own checksum misses one damaged
/// packet in 65,536, and memory of network cards has none.
void checkSeal(std::span<const std::byte, kFrameHeaderBytes> header, std::span<const std::byte> payload,
               const std::string& peer);
/// Throws ProtocolError, naming `peer`, for an unknown type or a length beyond the type's limit.
FrameHeader readHeader(std::span<const std::byte, kFrameHeaderBytes> from, const std::string& peer);

/// Throws ProtocolError unless `header` is the expected one.
void expectFrame(const FrameHeader& header, FrameType type, uint32_t session, uint32_t sequence,
                 const std::string& peer);

/// One frame, for everything that is not in a hurry.
struct Frame {
    FrameType type{};
    std::vector<std::byte> payload;
    std::string_view text() const { return {reinterpret_cast<const char*>(payload.data()), payload.size()}; }
};

/// Throws ConfigError for a payload beyond the type's limit, and ConnectionError.
void sendFrame(Connection& connection, uint32_t session, FrameType type, std::span<const std::byte> payload,
               Deadline deadline);
void sendFrame(Connection& connection, uint32_t session, FrameType type, std::string_view text, Deadline deadline);
/// The next frame, which must be one of `allowed` and no longer than `limit`: both are checked before memory is taken.
/// Throws ConnectionError, and ProtocolError for any other frame or session. A Failure that is not allowed becomes a
/// ConnectionError with the peer's words.
Frame receiveFrame(Connection& connection, uint32_t session, std::initializer_list<FrameType> allowed,
                   Deadline deadline, size_t limit = SIZE_MAX);

}  // namespace dllama
