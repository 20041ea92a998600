#include "net/handshake.hpp"

#include <charconv>
#include <sstream>

#include "base/json.hpp"
#include "base/printable.hpp"
#include "net/frame.hpp"
#include "net/tls.hpp"

namespace dllama {

namespace {

using nlohmann::json;

constexpr int kMaxRank = 63;

/// "dllama/1 data 0123456789abcdef 0 3"
std::string identityOf(const Hello& hello) {
    return fmt::format("dllama/{} {} {:016x} {} {}", kProtocolVersion,
                       hello.purpose == Hello::Purpose::Control ? "control" : "data", hello.session, hello.client,
                       hello.server);
}

std::optional<Hello> helloOf(const std::string& identity) {
    std::istringstream words(identity);
    std::string program, purpose, session;
    Hello hello;
    if (!(words >> program >> purpose >> session >> hello.client >> hello.server)) return std::nullopt;
    hello.purpose = purpose == "control" ? Hello::Purpose::Control : Hello::Purpose::Data;
    std::from_chars(session.data(), session.data() + session.size(), hello.session, 16);
    const bool ranksFit = hello.client >= 0 && hello.client < hello.server && hello.server <= kMaxRank;
    if (!ranksFit || identity != identityOf(hello)) return std::nullopt;
    return hello;
}

/// Session 0 in the frames of the handshake: the session is what they agree about.
constexpr uint32_t kNoSession = 0;

json parse(std::string_view text, const std::string& peer) {
    json document = parseJson(text);
    if (!document.is_object()) throw ProtocolError("{}: its greeting is not a JSON object", peer);
    return document;
}

}  // namespace

const char* buildId() {
    return DLLAMA_BUILD_ID;
}

NodeInfo nodeInfoFromJson(std::string_view text, const std::string& peer) {
    const json answer = parse(text, peer);
    NodeInfo node;
    try {
        if (const std::string error = answer.value("error", ""); !error.empty())
            throw Refused(answer.value("busy", false), fmt::format("{}: {}", peer, printable(error)));
        node.memory = integerFrom<uint64_t>(answer.at("memory"));
        node.threads = integerFrom<int>(answer.at("threads"));
        node.speed = answer.at("speed").get<double>();
        node.cpu = printable(answer.at("cpu").get<std::string>());
        const json& device = answer.at("device");
        node.device = {device.at("gpu").get<std::string>(), device.at("host").get<std::string>(),
                       device.at("process").get<std::string>(), device.at("nccl").get<std::string>(),
                       device.at("reaches").get<std::vector<std::string>>()};
    } catch (const json::exception&) {
        throw ProtocolError("{}: its greeting lacks a field", peer);
    }
    return node;
}

Greeted dial(const Address& address, const Hello& hello, const Secret* secret, Deadline deadline) {
    Socket socket = connectTcp(address, deadline);
    Greeted greeted;
    if (secret != nullptr)
        greeted.connection = connectTls(std::move(socket), address.text(), *secret, identityOf(hello), deadline);
    else
        greeted.connection = std::make_unique<PlainConnection>(std::move(socket), address.text());
    Connection& connection = *greeted.connection;

    const json text = {{"protocol", kProtocolVersion}, {"build", buildId()}, {"identity", identityOf(hello)}};
    sendFrame(connection, kNoSession, FrameType::Hello, text.dump(), deadline);
    const Frame frame = [&] {
        try {
            return receiveFrame(connection, kNoSession, {FrameType::Welcome}, deadline);
        } catch (const ConnectionError& error) {
            // What wants TLS hangs up when it hears plain text.
            throw ConnectionError("{} when it was greeted{}", error.what(),
                                  secret == nullptr ? " without a secret: does it want one?" : "");
        }
    }();
    greeted.node = nodeInfoFromJson(frame.text(), address.text());
    return greeted;
}

Caller greet(Incoming incoming, const Secret* secret, Deadline deadline) {
    Caller caller;
    std::string identity;
    const std::string peer = incoming.peer.text();
    if (secret != nullptr)
        caller.connection = acceptTls(
            std::move(incoming.socket), peer, *secret, [](const std::string& id) { return helloOf(id).has_value(); },
            identity, deadline);
    else
        caller.connection = std::make_unique<PlainConnection>(std::move(incoming.socket), peer);

    const Frame frame = receiveFrame(*caller.connection, kNoSession, {FrameType::Hello}, deadline);
    const json text = parse(frame.text(), peer);
    std::string build, claimed;
    int protocol = 0;
    try {
        protocol = integerFrom<int>(text.at("protocol"));
        build = text.at("build").get<std::string>();
        claimed = text.at("identity").get<std::string>();
    } catch (const json::exception&) {
        throw ProtocolError("{}: its greeting lacks a field", peer);
    }
    if (protocol != kProtocolVersion || build != buildId()) {
        refuse(caller, false,
               fmt::format("this worker runs version {} (protocol {}), the root must too", buildId(), kProtocolVersion),
               deadline);
        throw ProtocolError("{}: another version: its protocol is {}, ours {} ({})", peer, protocol, kProtocolVersion,
                            buildId());
    }
    const std::optional<Hello> hello = helloOf(claimed);
    if (!hello || (secret != nullptr && claimed != identity))
        throw ProtocolError("{}: its greeting is not the one its key belongs to", peer);
    caller.hello = *hello;
    return caller;
}

void welcome(const Caller& caller, const NodeInfo& node, Deadline deadline) {
    const DeviceIdentity& device = node.device;
    const json text = {{"memory", node.memory},
                       {"threads", node.threads},
                       {"speed", node.speed},
                       {"cpu", node.cpu},
                       {"device",
                        {{"gpu", device.gpu},
                         {"host", device.host},
                         {"process", device.process},
                         {"nccl", device.nccl},
                         {"reaches", device.reaches}}}};
    sendFrame(*caller.connection, kNoSession, FrameType::Welcome, text.dump(), deadline);
}

void refuse(const Caller& caller, bool busy, const std::string& reason, Deadline deadline) {
    const json text = {{"error", reason}, {"busy", busy}};
    sendFrame(*caller.connection, kNoSession, FrameType::Welcome, text.dump(), deadline);
}

}  // namespace dllama
