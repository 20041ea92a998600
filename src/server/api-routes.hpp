#pragma once

#include <boost/asio/thread_pool.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/api-error.hpp"
#include "server/answer-task.hpp"
#include "server/api-server.hpp"
#include "server/engine-thread.hpp"
#include "server/http.hpp"
#include "server/served-model.hpp"

namespace dllama {

struct WebFile;

/// Which path is answered by what. In the thread of the server's sockets, except where a function says otherwise.
class ApiRoutes final : public HttpHandler {
  public:
    explicit ApiRoutes(const ApiServerOptions& options);
    ~ApiRoutes() override;

    /// Runs a function in the thread of the server's sockets, from any thread. Must be set before the first request.
    void setPost(std::function<void(std::function<void()>)> post) { post_ = std::move(post); }
    /// The model is there. Both outlive this, or the next call.
    void setModel(const ServedModel* model, EngineThread* engine);
    /// No more answers begin.
    void drain() { draining_ = true; }
    /// Waits for the threads that prepare requests: they use the model.
    void stopWorkers() { workers_.join(); }
    /// Requests that are being answered.
    int nActive() const { return nActive_; }

    bool admit(const HttpRequest& head, HttpResponse& refusal) override;
    void handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;
    HttpResponse faulty(int status, const std::string& path, const std::string& message) override;

  private:
    using Exchange = std::shared_ptr<HttpExchange>;
    using Answer = void (ApiRoutes::*)(HttpRequest&, const Exchange&);
    struct Route {
        const char* method;
        const char* path;
        Answer answer;
        bool isOpen = false;  // needs no key
    };
    static const std::vector<Route>& routes();

    void health(HttpRequest& request, const Exchange& exchange);
    void models(HttpRequest& request, const Exchange& exchange);
    void props(HttpRequest& request, const Exchange& exchange);
    void slots(HttpRequest& request, const Exchange& exchange);
    void tokenize(HttpRequest& request, const Exchange& exchange);
    void detokenize(HttpRequest& request, const Exchange& exchange);
    void embeddings(HttpRequest& request, const Exchange& exchange);
    void generate(HttpRequest& request, const Exchange& exchange);

    void sendFile(const WebFile& file, const HttpRequest& request, const Exchange& exchange);
    void checkReady() const;
    /// Answers with what `work` returns, computed in another thread.
    void respondLater(const Exchange& exchange, api::Dialect dialect, std::function<std::string()> work);
    HttpResponse errorResponse(api::Dialect dialect, const api::ApiError& error) const;
    HttpHeaders corsHeaders(const HttpRequest& request) const;
    bool hasKey(const HttpRequest& request) const;

    const ApiServerOptions& options_;
    std::function<void(std::function<void()>)> post_;
    const ServedModel* model_ = nullptr;
    EngineThread* engine_ = nullptr;
    bool draining_ = false;
    int nActive_ = 0;
    int nPreparing_ = 0;
    std::map<const AnswerTask*, std::shared_ptr<AnswerTask>> tasks_;
    boost::asio::thread_pool workers_;  // parse, render and encode prompts
};

}  // namespace dllama
