#include "server/http-server.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <list>
#include <optional>

#include "base/errors.hpp"
#include "server/http-connection.hpp"

namespace dllama {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

/// After accept() has failed: it will again while there are no more files to open.
constexpr std::chrono::milliseconds kAcceptPause{200};

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
    for (const auto& [key, value] : headers)
        if (key == name) return value;
    return {};
}

class HttpServer::Impl {
  public:
    Impl(const HttpOptions& options, HttpHandler& handler)
        : shared_(std::make_shared<HttpShared>(HttpShared{options.limits, handler})),
          acceptor_(context_),
          pause_(context_),
          signals_(context_) {
        if (options.tlsCertificate.empty() != options.tlsKey.empty())
            throw ConfigError("--tls-cert and --tls-key belong together: one of them is missing");
        if (!options.tlsCertificate.empty()) loadCertificate(options);
        listen(options);
        shared_->connectionClosed = [this] { accept(); };
    }
    ~Impl() { shared_->connectionClosed = nullptr; }

    uint16_t port() const { return acceptor_.local_endpoint().port(); }

    void run(std::function<void(int)> onSignal) {
        onSignal_ = std::move(onSignal);
        signals_.add(SIGINT);
        signals_.add(SIGTERM);
        waitForSignal();
        accept();
        context_.run();
    }

    void drain() {
        shared_->draining = true;
        error_code ignored;
        acceptor_.close(ignored);
        for (const auto& weak : connections_)
            if (const auto connection = weak.lock()) connection->closeIfIdle();
    }

    asio::io_context context_{1};
    std::shared_ptr<HttpShared> shared_;

  private:
    void loadCertificate(const HttpOptions& options) {
        tls_.emplace(asio::ssl::context::tls_server);
        tls_->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                          asio::ssl::context::no_tlsv1_1);
        error_code error;
        tls_->use_certificate_chain_file(options.tlsCertificate, error);
        if (error) throw ConfigError("--tls-cert {}: {}", options.tlsCertificate, error.message());
        tls_->use_private_key_file(options.tlsKey, asio::ssl::context::pem, error);
        if (error) throw ConfigError("--tls-key {}: {}", options.tlsKey, error.message());
    }

    void listen(const HttpOptions& options) {
        error_code error;
        tcp::resolver resolver(context_);
        const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                            tcp::resolver::passive | tcp::resolver::numeric_service, error);
        if (error) throw ConfigError("--host {} is no address of this machine: {}", options.host, error.message());
        const tcp::endpoint endpoint = found.begin()->endpoint();
        acceptor_.open(endpoint.protocol(), error);
        if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
        if (!error) acceptor_.bind(endpoint, error);
        if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
        if (error) throw ConfigError("cannot listen on {}:{}: {}", options.host, options.port, error.message());
    }

    /// One accept at a time, while there is room for a connection.
    void accept() {
        if (accepting_ || shared_->draining || shared_->nConnections >= shared_->limits.connections) return;
        accepting_ = true;
        acceptor_.async_accept([this](error_code error, tcp::socket socket) {
            accepting_ = false;
            if (shared_->draining) return;
            if (error) {
                pause_.expires_after(kAcceptPause);
                pause_.async_wait([this](error_code) { accept(); });
                return;
            }
            std::erase_if(connections_, [](const auto& connection) { return connection.expired(); });
            connections_.push_back(serveConnection(std::move(socket), tls_ ? &*tls_ : nullptr, shared_));
            accept();
        });
    }

    void waitForSignal() {
        signals_.async_wait([this](error_code error, int) {
            if (error) return;
            onSignal_(++nSignals_);
            waitForSignal();
        });
    }

    std::optional<asio::ssl::context> tls_;
    tcp::acceptor acceptor_;
    asio::steady_timer pause_;
    asio::signal_set signals_;
    std::list<std::weak_ptr<HttpConnection>> connections_;
    std::function<void(int)> onSignal_;
    int nSignals_ = 0;
    bool accepting_ = false;
};

HttpServer::HttpServer(const HttpOptions& options, HttpHandler& handler)
    : impl_(std::make_unique<Impl>(options, handler)) {}
HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const {
    return impl_->port();
}
void HttpServer::run(std::function<void(int)> onSignal) {
    impl_->run(std::move(onSignal));
}
void HttpServer::drain() {
    impl_->drain();
}
void HttpServer::stop() {
    impl_->context_.stop();
}
void HttpServer::post(std::function<void()> task) {
    asio::post(impl_->context_, std::move(task));
}
void HttpServer::postAfter(std::chrono::milliseconds delay, std::function<void()> task) {
    const auto timer = std::make_shared<asio::steady_timer>(impl_->context_, delay);
    timer->async_wait([timer, task = std::move(task)](error_code error) {
        if (!error) task();
    });
}
int HttpServer::nConnections() const {
    return impl_->shared_->nConnections;
}

}  // namespace dllama
