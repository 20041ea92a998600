#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/http-server.hpp"
#include "server/served-model.hpp"

namespace dllama {

struct ApiServerOptions {
    HttpOptions http;
    /// Clients must name one of them (Authorization: Bearer KEY, or x-api-key); empty: anyone may ask.
    std::vector<std::string> keys{};
    /// Web pages of this origin may ask ("*": of any); empty: none but our own.
    std::string corsOrigin{};
    int nParallel = 4;
    int queueLimit = 64;
    /// From the arrival of a request to the end of its answer; 0: as long as it takes.
    std::chrono::seconds requestTime{0};
    /// How long the end of the program waits for answers under way.
    std::chrono::seconds drainTime{30};
};

/// The model behind an HTTP server that speaks OpenAI's chat completions and completions.
class ApiServer {
  public:
    /// Listens; until the model is there /health says 503. Throws ConfigError like HttpServer.
    explicit ApiServer(ApiServerOptions options);
    ~ApiServer();

    uint16_t port() const;

    /// Given to the function that loads the model.
    class Host {
      public:
        virtual ~Host() = default;
        /// Serves the model until the program is to end. `ready` is called once requests are answered.
        virtual void serve(ServedModel model, std::function<void()> ready) = 0;
    };
    /// Calls `load` in a thread of its own and serves until SIGTERM or SIGINT; then answers under way end. A second
    /// signal ends at once. What `load` throws is thrown again here.
    void run(const std::function<void(Host&)>& load);

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace dllama
