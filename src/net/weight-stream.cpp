#include "net/weight-stream.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "net/frame.hpp"

namespace dllama {

namespace {

constexpr size_t kPieceHeader = 16;
constexpr size_t kPieceBytes = 1024 * 1024;
/// The root may wait for its disk, the worker for its own.
constexpr std::chrono::seconds kPieceLimit{60};

struct PieceHeader {
    uint32_t index = 0;
    uint32_t reserved = 0;
    uint64_t value = 0;  // Slice: offset of the piece; SliceHash: the hash
};
static_assert(sizeof(PieceHeader) == kPieceHeader);

}  // namespace

void sendSlices(Connection& connection, uint32_t session, const TensorSource& source,
                const std::vector<TensorSlice>& slices, const std::function<void(size_t done)>& progress) {
    std::vector<std::byte> scratch, piece;
    size_t done = 0;
    for (uint32_t i = 0; i < slices.size(); i++) {
        const std::span<const std::byte> bytes = source.read(slices[i], scratch);
        for (size_t offset = 0; offset < bytes.size(); offset += kPieceBytes) {
            const size_t n = std::min(kPieceBytes, bytes.size() - offset);
            const PieceHeader header{i, 0, offset};
            piece.resize(kPieceHeader + n);
            std::memcpy(piece.data(), &header, kPieceHeader);
            std::memcpy(piece.data() + kPieceHeader, bytes.data() + offset, n);
            sendFrame(connection, session, FrameType::Slice, piece, Clock::now() + kPieceLimit);
            progress(done += n);
        }
        const PieceHeader header{i, 0, XXH3_64bits(bytes.data(), bytes.size())};
        sendFrame(connection, session, FrameType::SliceHash, std::as_bytes(std::span(&header, 1)),
                  Clock::now() + kPieceLimit);
    }
}

std::string receiveSlices(Connection& connection, uint32_t session, SliceStore& store) {
    std::vector<uint64_t> hashes;
    for (uint32_t i = 0; i < store.nSlices(); i++) {
        const std::span<std::byte> room = store.room(i);
        size_t filled = 0;
        for (;;) {
            const Frame frame =
                receiveFrame(connection, session, {FrameType::Slice, FrameType::SliceHash}, Clock::now() + kPieceLimit);
            PieceHeader header;
            if (frame.payload.size() < kPieceHeader)
                throw ProtocolError("{}: a piece of {} bytes", connection.peer(), frame.payload.size());
            std::memcpy(&header, frame.payload.data(), kPieceHeader);
            const bool isHash = frame.type == FrameType::SliceHash;
            const size_t n = frame.payload.size() - kPieceHeader;
            if (header.index != i ||
                (isHash ? filled != room.size() : header.value != filled || n > room.size() - filled))
                throw ProtocolError("{}: slice {}: a piece for slice {} of {} bytes does not fit at {} of {}",
                                    connection.peer(), i, header.index, n, filled, room.size());
            if (isHash) {
                hashes.push_back(header.value);
                break;
            }
            std::memcpy(room.data() + filled, frame.payload.data() + kPieceHeader, n);
            filled += n;
        }
        if (XXH3_64bits(room.data(), room.size()) != hashes.back())
            throw ProtocolError("{}: slice {} arrived damaged", connection.peer(), i);
    }
    return store.finish(hashes);
}

}  // namespace dllama
