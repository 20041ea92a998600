#include "server/api-server.hpp"

#include <exception>
#include <future>
#include <optional>
#include <thread>

#include "server/api-routes.hpp"

namespace dllama {

namespace {

/// Between looks at whether the last answer has ended.
constexpr std::chrono::milliseconds kDrainPoll{50};

}  // namespace

class ApiServer::Impl final : public ApiServer::Host {
  public:
    explicit Impl(ApiServerOptions options)
        : options_(std::move(options)), routes_(options_), http_(options_.http, routes_) {
        routes_.setPost([this](std::function<void()> task) { http_.post(std::move(task)); });
    }

    uint16_t port() const { return http_.port(); }

    void run(const std::function<void(Host&)>& load) {
        std::thread engine([&] {
            try {
                load(*this);
            } catch (...) {
                failure_ = std::current_exception();
            }
            http_.stop();
        });
        http_.run([this](int count) {
            if (count > 1 || !engine_) std::_Exit(130);
            beginDrain();
        });
        routes_.stopWorkers();
        socketsEnded_.set_value();
        engine.join();
        if (failure_) std::rethrow_exception(failure_);
    }

    void serve(ServedModel model, std::function<void()> ready) override {
        model_.emplace(std::move(model));
        EngineThread engine(model_->engine, options_.nParallel, options_.queueLimit);
        http_.post([this, &engine, ready = std::move(ready)] {
            engine_ = &engine;
            routes_.setModel(&*model_, &engine);
            ready();
        });
        engine.run();
        // Nobody may look at the model any more when it goes.
        http_.stop();
        socketsEnded_.get_future().wait();
    }

  private:
    void beginDrain() {
        routes_.drain();
        http_.drain();
        drainEnd_ = std::chrono::steady_clock::now() + options_.drainTime;
        awaitEnd();
    }

    void awaitEnd() {
        const bool idle = routes_.nActive() == 0 && http_.nConnections() == 0;
        if (idle || std::chrono::steady_clock::now() >= drainEnd_) return engine_->stop();
        http_.postAfter(kDrainPoll, [this] { awaitEnd(); });
    }

    const ApiServerOptions options_;
    ApiRoutes routes_;
    HttpServer http_;
    std::optional<ServedModel> model_;
    EngineThread* engine_ = nullptr;
    std::chrono::steady_clock::time_point drainEnd_;
    std::promise<void> socketsEnded_;
    std::exception_ptr failure_;
};

ApiServer::ApiServer(ApiServerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
ApiServer::~ApiServer() = default;

uint16_t ApiServer::port() const {
    return impl_->port();
}
void ApiServer::run(const std::function<void(Host&)>& load) {
    impl_->run(load);
}

}  // namespace dllama
