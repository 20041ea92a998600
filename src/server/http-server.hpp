#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/http.hpp"

namespace dllama {

/// What clients may take of this machine.
struct HttpLimits {
    size_t headerBytes = 64 << 10;
    size_t bodyBytes = 32 << 20;
    /// Of all bodies that are being read at once.
    size_t allBodyBytes = 256 << 20;
    int connections = 512;
    std::chrono::seconds headerTime{15};
    std::chrono::seconds bodyTime{120};
    /// Of a connection between requests.
    std::chrono::seconds idleTime{75};
    /// A client that takes nothing of its answer for so long has left.
    std::chrono::seconds writeTime{60};
    /// An answer that a client does not take in may grow so far.
    size_t unsentBytes = 16 << 20;
};

struct HttpOptions {
    std::string host = "127.0.0.1";
    uint16_t port = 9990;        // 0: any free one
    std::string tlsCertificate;  // PEM files; empty: plain HTTP
    std::string tlsKey;
    HttpLimits limits;
};

/// HTTP/1.1 over TCP or TLS: keep-alive, pipelining, bodies in chunks both ways. One thread, run(), for all of it.
class HttpServer {
  public:
    /// Listens. Throws ConfigError if the address cannot be had or the certificate cannot be read. The handler must
    /// outlive the server.
    HttpServer(const HttpOptions& options, HttpHandler& handler);
    ~HttpServer();

    uint16_t port() const;
    /// Serves until stop(). SIGTERM and SIGINT call onSignal, with the number of signals so far.
    void run(std::function<void(int count)> onSignal);
    /// Accepts no more connections; answers under way end, idle connections close.
    void drain();
    /// Ends run() at once. From any thread.
    void stop();
    /// Runs a function in the thread of run(). From any thread.
    void post(std::function<void()> task);
    /// Runs a function there after some time.
    void postAfter(std::chrono::milliseconds delay, std::function<void()> task);
    int nConnections() const;

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace dllama
