#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "base/printable.hpp"
#include "server/api-server.hpp"

namespace dllama {

namespace {

/// The demo model's tokenizer has GLM-4.5's marks and no template.
constexpr ChatFormat kDemoFormat = ChatFormat::Glm45;

std::vector<std::string> readKeys(const std::string& path) {
    std::vector<std::string> keys;
    if (!path.empty()) {
        std::istringstream lines(readTextFile(path));
        for (std::string line; std::getline(lines, line);) {
            while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
            if (!line.empty()) keys.push_back(line);
        }
        if (keys.empty()) throw ConfigError("--api-key-file {} holds no key", path);
    } else if (const char* key = std::getenv("DLLAMA_API_KEY"); key != nullptr) {
        if (*key == '\0') throw ConfigError("DLLAMA_API_KEY is empty: set a key, or unset it");
        keys.push_back(key);
    }
    return keys;
}

ChatFormat chooseFormat(const ApiOptions& options, const Session& session) {
    if (!options.chatFormat.empty()) return chatFormatByName(options.chatFormat);
    const ChatChoice choice = chooseChatFormat(session.tokenizer().file());
    if (choice.format != ChatFormat::None) return choice.format;
    if (session.isDemo()) return kDemoFormat;
    if (!choice.reason.empty())
        fmt::print("⚠️ {}: messages are put together as plain text (--chat-template names a format)\n",
                   choice.reason);
    return ChatFormat::None;
}

ServedModel servedModel(const ApiOptions& options, Session& session) {
    ServedModel model{session.engine(), session.tokenizer()};
    model.format = chooseFormat(options, session);
    model.stops = chatStops(model.format, session.tokenizer());
    for (const int id : session.stopTokens())
        if (std::find(model.stops.ids.begin(), model.stops.ids.end(), id) == model.stops.ids.end())
            model.stops.ids.push_back(id);
    model.names = options.names;
    const std::string& name = session.arch().config.name;
    if (model.names.empty() || model.names[0] == "*")
        model.names.insert(model.names.begin(), name.empty() ? session.modelName() : name);
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    model.created = std::chrono::duration_cast<std::chrono::seconds>(now).count();
    model.contextLength = session.engine().maxPositions();
    model.vocabSize = session.arch().config.vocabSize;
    model.sampling = options.sampling;
    model.backend = session.backend().name();
    return model;
}

ApiServerOptions serverOptions(const ApiOptions& options) {
    ApiServerOptions server;
    server.http.host = options.host;
    server.http.port = static_cast<uint16_t>(options.port);
    server.http.tlsCertificate = options.tlsCertificate;
    server.http.tlsKey = options.tlsKey;
    server.http.limits.bodyBytes = static_cast<size_t>(options.bodyMegabytes) << 20;
    server.http.limits.allBodyBytes = std::max<size_t>(256 << 20, server.http.limits.bodyBytes);
    server.http.limits.connections = options.connections;
    server.keys = readKeys(options.keyFile);
    server.corsOrigin = options.corsOrigin;
    server.nParallel = options.nParallel;
    server.queueLimit = options.queueLimit;
    server.requestTime = std::chrono::seconds(options.requestSeconds);
    server.drainTime = std::chrono::seconds(options.drainSeconds);
    return server;
}

}  // namespace

int runApi(const ApiOptions& options) {
    checkSamplingParams(options.sampling);
    ApiServer server(serverOptions(options));
    const std::string scheme = options.tlsCertificate.empty() ? "http" : "https";
    const std::string host = options.host.find(':') == std::string::npos ? options.host : "[" + options.host + "]";
    server.run([&](ApiServer::Host& serving) {
        Session session(options.model,
                        {.maxOutputs = options.nParallel, .nContexts = options.nParallel, .ownPort = server.port()});
        ServedModel model = servedModel(options, session);
        fmt::print("⭐ Chat template: {}\n", chatFormatName(model.format));
        const std::string name = printable(model.names[0]);
        serving.serve(std::move(model), [&] {
            fmt::print("🌐 {} at {}://{}:{}\n", name, scheme, host, server.port());
            flushOutput();
        });
        session.finish();
    });
    return 0;
}

}  // namespace dllama
