// libFuzzer target: whatever a peer sends is understood or refused with an Error, in bounded memory. The first byte
// says what the others are: the begin of a connection, frames, weights, a batch, the JSON of a setup, of a welcome or
// of statistics, a file of the cache folder or a report of lines. JSON is changed as JSON.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "base/errors.hpp"
#include "cluster/cluster-setup.hpp"
#include "cluster/line-watch.hpp"
#include "cluster/memory-plan.hpp"
#include "json-mutator.hpp"
#include "net/batch-codec.hpp"
#include "net/frame.hpp"
#include "net/handshake.hpp"
#include "net/slice-store.hpp"
#include "net/weight-stream.hpp"

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

/// The bytes as frames, one after the other, whose checksums are right: a fuzzer does not find them.
std::string sealed(std::string_view bytes) {
    std::string frames(bytes);
    for (size_t at = 0; at + kFrameHeaderBytes <= frames.size();) {
        uint32_t length = 0;
        std::memcpy(&length, frames.data() + at + 12, sizeof length);
        const size_t n = std::min<size_t>(kFrameHeaderBytes + length, frames.size() - at);
        sealFrame(std::as_writable_bytes(std::span(frames).subspan(at, n)));
        at += n;
    }
    return frames;
}

void readGreeting(std::string_view bytes, const Secret* secret) {
    const Caller caller = greet({arriving(secret ? std::string(bytes) : sealed(bytes)), Address{"fuzz", 1}}, secret,
                                after(std::chrono::milliseconds(50)));
    welcome(caller, {}, after(std::chrono::milliseconds(50)));
}

void readFrames(std::string_view bytes) {
    PlainConnection connection(arriving(sealed(bytes)), "fuzz");
    using enum FrameType;
    for (;;)
        receiveFrame(connection, 0,
                     {Hello, Welcome, Setup, Holdings, Slice, SliceHash, Progress, Ready, Start, Batch, Part, Rows,
                      Probe, Heartbeat, Failure, Statistics, Lines},
                     after(std::chrono::milliseconds(50)), 1 << 20);
}

/// Two slices of a model, with or without a folder.
SliceStore smallStore(const std::string& folder) {
    return SliceStore({{"a", DType::F32, 4, 8}, {"b", DType::Q40, 2, 64}}, {{"a", 0, 2, 0, 8}, {"b", 0, 2, 32, 64}}, 1,
                      folder);
}

void readSlices(std::string_view bytes) {
    PlainConnection connection(arriving(sealed(bytes)), "fuzz");
    SliceStore store = smallStore("");
    receiveSlices(connection, 0, store);
}

void readCacheFile(std::string_view bytes) {
    static const std::string folder = [] {
        std::string name = "/tmp/dllama-fuzz-XXXXXX";
        return std::string(::mkdtemp(name.data()));
    }();
    {
        std::ofstream file(folder + "/0000000000000001.slices", std::ios::binary);
        file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    }
    const SliceStore store = smallStore(folder);
    std::vector<std::byte> scratch;
    if (store.complete()) store.read({"b", 1, 2, 32, 64}, scratch);
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
    const Architecture arch = makeArchitecture(setup.config);
    const ShardPlan plan = makeShardPlan(arch, setup.nodes, setup.placement, setup.expertUse);
    checkFrames(arch, plan, setup.limits, DType::F32, setup.wire);
    describeTensors(arch, setup.weightType, setup.exceptions);
    rankSlices(arch, plan, plan.nRanks() - 1);
}

void readLines(std::string_view bytes) {
    const auto lines = decodeLines(std::as_bytes(std::span(bytes)));
    if (!lines) return;
    LineWatch watch(std::chrono::milliseconds(1500));
    for (int i = 0; i < 2; i++) watch.report(1, *lines, LineWatch::Time(std::chrono::seconds(2 * i)));
}

constexpr int kKinds = 10;
constexpr bool isJson(int kind) {
    return kind == 4 || kind == 5 || kind == 6;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    std::signal(SIGPIPE, SIG_IGN);  // as the program does
    return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t maxSize);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t maxSize, unsigned seed) {
    if (size == 0 || !isJson(data[0] % kKinds) || seed % 4 == 0) return LLVMFuzzerMutate(data, size, maxSize);
    const std::string json = test::mutateJson({reinterpret_cast<const char*>(data) + 1, size - 1}, seed);
    if (json.size() + 1 > maxSize) return size;
    std::memcpy(data + 1, json.data(), json.size());
    return json.size() + 1;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    static const Secret secret = Secret::parse("aG9zdGlsZSB0ZXN0IHNlY3JldCAwMTIzNDU2Nzg5YWI=", "fuzz");
    const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0] % kKinds) {
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
            case 4:
                readSetup(bytes);
                break;
            case 5:
                nodeInfoFromJson(bytes, "fuzz");
                break;
            case 6:
                statisticsFromJson(bytes);
                break;
            case 7:
                readSlices(bytes);
                break;
            case 8:
                readCacheFile(bytes);
                break;
            default:
                readLines(bytes);
        }
    } catch (const Error&) {
        return 0;
    }
    return 0;
}
