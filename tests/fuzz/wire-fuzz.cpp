// libFuzzer target: whatever a peer sends is understood or refused with an Error, in bounded memory. The first byte
// says what the others are: the begin of a connection, frames, a batch, or the JSON of a setup.

#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <string>

#include "base/errors.hpp"
#include "cluster/cluster-setup.hpp"
#include "net/batch-codec.hpp"
#include "net/frame.hpp"
#include "net/handshake.hpp"

namespace {

using namespace dllama;

/// A socket on which the bytes arrive, and then the end of the connection.
Socket arriving(std::string_view bytes) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) throw std::bad_alloc();
    const Socket sender(ends[1]);
    // More than fits into the socket's buffer is cut off.
    if (::send(ends[1], bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) ::shutdown(ends[1], SHUT_WR);
    return Socket(ends[0]);
}

void readGreeting(std::string_view bytes, const Secret* secret) {
    const Caller caller = greet({arriving(bytes), Address{"fuzz", 1}}, secret, after(std::chrono::milliseconds(50)));
    welcome(caller, {}, after(std::chrono::milliseconds(50)));
}

void readFrames(std::string_view bytes) {
    PlainConnection connection(arriving(bytes), "fuzz");
    for (;;)
        receiveFrame(connection, 0, {FrameType::Setup, FrameType::Slice, FrameType::Batch, FrameType::Statistics},
                     after(std::chrono::milliseconds(50)), 1 << 20);
}

void readBatch(std::string_view bytes) {
    const BatchLimits limits{.maxTokens = 8,
                             .maxOutputs = 4,
                             .nKvBlocks = 16,
                             .maxPositions = 256,
                             .ropeParts = 2,
                             .dim = 64,
                             .embeddingType = DType::F32};
    Batch batch;
    decodeBatch(std::as_bytes(std::span(bytes)), limits, "fuzz", batch);
}

void readSetup(std::string_view bytes) {
    const ClusterSetup setup = setupFromJson(std::string(bytes), "fuzz");
    makeArchitecture(setup.config);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    std::signal(SIGPIPE, SIG_IGN);  // as the program does
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    static const Secret secret = Secret::parse("aG9zdGlsZSB0ZXN0IHNlY3JldCAwMTIzNDU2Nzg5YWI=", "fuzz");
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0] % 5) {
            case 0:
                readGreeting(bytes, nullptr);
                break;
            case 1:
                readGreeting(bytes, &secret);
                break;
            case 2:
                readFrames(bytes);
                break;
            case 3:
                readBatch(bytes);
                break;
            default:
                readSetup(bytes);
        }
    } catch (const Error&) {
        return 0;
    }
    return 0;
}
