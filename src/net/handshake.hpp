#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "net/connection.hpp"
#include "net/secret.hpp"
#include "parallel/device-collectives.hpp"

/// How a connection begins: TLS if there is a secret, then Hello and Welcome. Both sides check protocol and build.
namespace dllama {

constexpr int kProtocolVersion = 6;

/// The program's version: ranks add up the same bits only if they compute alike.
const char* buildId();

/// Who connects to whom, and what for. With a secret this is also the name of the key.
struct Hello {
    enum class Purpose { Control, Data };
    Purpose purpose = Purpose::Control;
    /// Chosen at random by the root for each start of the cluster.
    uint64_t session = 0;
    int client = 0;
    int server = 0;
    bool operator==(const Hello&) const = default;
};

/// What a worker says about itself when it is asked for control.
struct NodeInfo {
    /// Bytes it may use.
    uint64_t memory = 0;
    int threads = 0;
    /// Bytes per second that it reads from memory: what decoding is bound by.
    double speed = 0.0;
    std::string cpu;
    DeviceIdentity device;
};

/// The peer answered, but does not want this connection now.
struct Refused : ConnectionError {
    Refused(bool busy, const std::string& text) : ConnectionError("{}", text), busy(busy) {}
    /// It serves another root, or has not noticed yet that its last one is gone.
    bool busy;
};

/// What a Welcome says. Throws Refused, and ProtocolError, naming `peer`, for a damaged one.
NodeInfo nodeInfoFromJson(std::string_view text, const std::string& peer);

struct Greeted {
    std::unique_ptr<Connection> connection;
    NodeInfo node;
};

/// Connects and introduces itself. Without a secret in plain text. Throws ConnectionError, Refused, ProtocolError.
Greeted dial(const Address& address, const Hello& hello, const Secret* secret, Deadline deadline);

struct Caller {
    std::unique_ptr<Connection> connection;
    Hello hello;
};

/// Hears a caller's Hello. Throws ConnectionError or ProtocolError; a caller of another version is told so before.
Caller greet(Incoming incoming, const Secret* secret, Deadline deadline);

/// Answers it.
void welcome(const Caller& caller, const NodeInfo& node, Deadline deadline);
void refuse(const Caller& caller, bool busy, const std::string& reason, Deadline deadline);

}  // namespace dllama
