#include "server/http-connection.hpp"

#include <fmt/format.h>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <deque>
#include <optional>
#include <sstream>

namespace dllama {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;

/// Bytes that go into one write, for which a client has HttpLimits::writeTime.
constexpr size_t kWriteBytes = 256 << 10;

/// After an answer that leaves a part of the request unread: a client that still sends would lose the answer if the
/// connection were closed at once.
constexpr std::chrono::seconds kLingerTime{5};

beast::tcp_stream& tcpOf(beast::tcp_stream& stream) {
    return stream;
}
beast::tcp_stream& tcpOf(beast::ssl_stream<beast::tcp_stream>& stream) {
    return stream.next_layer();
}

/// Reads a request, has it answered, reads the next one.
template <typename Stream>
class Connection final : public HttpConnection, public std::enable_shared_from_this<Connection<Stream>> {
  public:
    template <typename... Args>
    explicit Connection(std::shared_ptr<HttpShared> shared, Args&&... args)
        : shared_(std::move(shared)), stream_(std::forward<Args>(args)...), timer_(stream_.get_executor()) {
        shared_->nConnections++;
    }
    ~Connection() override {
        releaseBody();
        shared_->nConnections--;
        if (shared_->connectionClosed) shared_->connectionClosed();
    }

    void start() {
        if constexpr (std::is_same_v<Stream, beast::tcp_stream>) {
            readHeader(shared_->limits.headerTime);
        } else {
            tcpOf(stream_).expires_after(shared_->limits.headerTime);
            stream_.async_handshake(asio::ssl::stream_base::server, [self = self()](error_code error) {
                if (!error) self->readHeader(self->shared_->limits.headerTime);
            });
        }
    }

    void closeIfIdle() override {
        if (idle_) close();
    }

  private:
    /// The answer of one request. It may outlive the connection's interest in it.
    class Exchange final : public HttpExchange {
      public:
        explicit Exchange(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
        ~Exchange() override {
            // Nobody will answer any more.
            if (connection_ && !ended_) connection_->fail();
        }
        void send(HttpResponse response) override {
            if (!connection_) return;
            ended_ = true;
            connection_->sendWhole(std::move(response));
            connection_.reset();
        }
        void start(HttpResponse head) override {
            if (connection_) connection_->sendHead(std::move(head));
        }
        void write(std::string part) override {
            if (connection_ && !part.empty()) connection_->queue(std::move(part));
        }
        void end() override {
            if (!connection_) return;
            ended_ = true;
            connection_->queueEnd();
            connection_.reset();
        }
        size_t nUnsent() const override { return connection_ ? connection_->nUnsent_ : 0; }
        void onGone(std::function<void()> gone) override {
            if (connection_)
                connection_->gone_ = std::move(gone);
            else if (!ended_)
                gone();
        }
        /// The client has left.
        void abandon() { connection_.reset(); }

      private:
        std::shared_ptr<Connection> connection_;
        bool ended_ = false;
    };

    std::shared_ptr<Connection> self() { return this->shared_from_this(); }

    void readHeader(std::chrono::seconds time) {
        if (shared_->draining && served_) return close();
        parser_.emplace();
        parser_->header_limit(static_cast<uint32_t>(shared_->limits.headerBytes));
        parser_->body_limit(shared_->limits.bodyBytes);
        request_ = {};
        idle_ = buffer_.size() == 0;
        tcpOf(stream_).expires_after(time);
        http::async_read_header(stream_, buffer_, *parser_, [self = self()](error_code error, size_t) {
            self->idle_ = false;
            if (error) return self->readFailed(error);
            self->headerRead();
        });
    }

    void headerRead() {
        const auto& message = parser_->get();
        keepAlive_ = message.keep_alive();
        isHttp11_ = message.version() == 11;
        request_.method = std::string(message.method_string());
        const std::string_view target(message.target().data(), message.target().size());
        request_.path = std::string(target.substr(0, target.find('?')));
        for (const auto& field : message) {
            std::string name(field.name_string());
            for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
            request_.headers.emplace_back(std::move(name), std::string(field.value()));
        }
        isHead_ = request_.method == "HEAD";
        HttpResponse refusal;
        if (!shared_->handler.admit(request_, refusal)) return refuse(std::move(refusal));
        const size_t limit = shared_->limits.bodyBytes;
        if (const auto length = parser_->content_length(); length && *length > limit) return bodyTooLarge();
        // A body whose length is not told may take all that is allowed.
        const size_t body = parser_->content_length() ? static_cast<size_t>(*parser_->content_length())
                            : parser_->chunked()      ? limit
                                                      : 0;
        if (shared_->bodyBytes + body > shared_->limits.allBodyBytes)
            return refuse(shared_->handler.faulty(503, request_.path, "too many large requests at once: try again"));
        reservedBody_ = body;
        shared_->bodyBytes += body;
        if (request_.header("expect") == "100-continue" && body > 0) {
            static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
            asio::async_write(stream_, asio::buffer(kContinue), [self = self()](error_code error, size_t) {
                if (!error) self->readBody();
            });
            return;
        }
        readBody();
    }

    void readBody() {
        tcpOf(stream_).expires_after(shared_->limits.bodyTime);
        http::async_read(stream_, buffer_, *parser_, [self = self()](error_code error, size_t) {
            if (error) return self->readFailed(error);
            self->request_.body = std::move(self->parser_->get().body());
            self->releaseBody();
            self->answer();
        });
    }

    void answer() {
        served_ = true;
        const auto exchange = std::make_shared<Exchange>(self());
        exchange_ = exchange;
        watch();
        shared_->handler.handle(std::move(request_), exchange);
    }

    /// Notices a client that leaves while its answer is on the way. One that sends its next request meanwhile is
    /// noticed only by what it does not take of the answer.
    void watch() {
        if (watching_ || buffer_.size() > 0) return;
        watching_ = true;
        tcpOf(stream_).expires_never();
        stream_.async_read_some(buffer_.prepare(4096), [self = self()](error_code error, size_t n) {
            self->watching_ = false;
            self->buffer_.commit(n);
            if (self->closed_) return;
            if (error) return self->clientGone();
            if (self->lingering_) return self->discard();
            if (self->answered_) self->next();
        });
    }

    void sendWhole(HttpResponse response) {
        http::response<http::string_body> message = headOf(response);
        message.body() = std::move(response.body);
        message.prepare_payload();
        if (isHead_) message.body().clear();
        std::ostringstream text;
        if (isHead_)
            text << message.base();
        else
            text << message;
        push(std::move(text).str());
        ended_ = true;
        flush();
    }

    void sendHead(HttpResponse head) {
        http::response<http::string_body> message = headOf(head);
        // HTTP/1.0 knows no chunks: there the end of the connection ends the body.
        if (isHttp11_)
            message.chunked(true);
        else
            keepAlive_ = false;
        message.keep_alive(keepAlive_);
        std::ostringstream text;
        text << message.base();
        push(std::move(text).str());
        if (!head.body.empty()) queue(std::move(head.body));
        flush();
    }

    http::response<http::string_body> headOf(const HttpResponse& response) {
        if (shared_->draining) keepAlive_ = false;
        http::response<http::string_body> message(static_cast<http::status>(response.status), isHttp11_ ? 11 : 10);
        message.set(http::field::content_type, response.contentType);
        for (const auto& [name, value] : response.headers) message.set(name, value);
        message.keep_alive(keepAlive_);
        return message;
    }

    void queue(std::string part) {
        push(isHttp11_ ? fmt::format("{:x}\r\n{}\r\n", part.size(), part) : std::move(part));
        if (nUnsent_ > shared_->limits.unsentBytes) return clientGone();
        flush();
    }

    void queueEnd() {
        if (isHttp11_) push("0\r\n\r\n");
        ended_ = true;
        flush();
    }

    void push(std::string bytes) {
        nUnsent_ += bytes.size();
        unsent_.push_back(std::move(bytes));
    }

    /// One write at a time, of all that is there.
    void flush() {
        if (writing_ || closed_) return;
        if (unsent_.empty()) {
            if (ended_) answered();
            return;
        }
        writing_ = true;
        size_t bytes = 0;
        while (!unsent_.empty() && bytes < kWriteBytes) {
            bytes += unsent_.front().size();
            sending_.push_back(std::move(unsent_.front()));
            unsent_.pop_front();
        }
        std::vector<asio::const_buffer> buffers;
        for (const std::string& part : sending_) buffers.push_back(asio::buffer(part));
        // Of the write only: watch() has set a time of its own for the read that is pending.
        tcpOf(stream_).expires_after(shared_->limits.writeTime);
        asio::async_write(stream_, buffers, [self = self()](error_code error, size_t n) {
            self->writing_ = false;
            self->nUnsent_ -= std::min(n, self->nUnsent_);
            self->sending_.clear();
            if (error) return self->clientGone();
            self->flush();
        });
    }

    void answered() {
        if (answered_) return;
        answered_ = true;
        exchange_.reset();
        gone_ = {};
        if (!keepAlive_) return linger();
        if (!watching_) return next();
        // What watch() waits for is the next request's beginning.
        idle_ = true;
        if (shared_->draining) return close();
        closeAfter(shared_->limits.idleTime);
    }

    void next() {
        timer_.cancel();
        answered_ = ended_ = false;
        readHeader(buffer_.size() > 0 ? shared_->limits.headerTime : shared_->limits.idleTime);
    }

    void closeAfter(std::chrono::seconds time) {
        timer_.expires_after(time);
        timer_.async_wait([weak = std::weak_ptr(self())](error_code error) {
            const auto self = weak.lock();
            if (!error && self) self->close();
        });
    }

    /// An answer instead of a body that is not read.
    void refuse(HttpResponse refusal) {
        keepAlive_ = false;
        served_ = true;
        sendWhole(std::move(refusal));
    }

    void bodyTooLarge() {
        refuse(shared_->handler.faulty(413, request_.path,
                                       fmt::format("the body is larger than {} bytes", shared_->limits.bodyBytes)));
    }

    void readFailed(error_code error) {
        releaseBody();
        if (error == http::error::body_limit) return bodyTooLarge();
        if (error == http::error::header_limit || error == http::error::buffer_overflow)
            return refuse(shared_->handler.faulty(
                431, request_.path, fmt::format("the headers are larger than {} bytes", shared_->limits.headerBytes)));
        if (error == beast::error::timeout || error == http::error::end_of_stream ||
            error.category() != make_error_code(http::error::end_of_stream).category())
            return close();
        isHttp11_ = true;
        refuse(
            shared_->handler.faulty(400, request_.path, fmt::format("this is no HTTP request: {}", error.message())));
    }

    void releaseBody() {
        shared_->bodyBytes -= reservedBody_;
        reservedBody_ = 0;
    }

    /// The handler has let go of the request.
    void fail() {
        if (!answered_) clientGone();
    }

    void clientGone() {
        if (closed_) return;
        close();
        if (const auto exchange = exchange_.lock()) {
            exchange->abandon();
            if (gone_) std::exchange(gone_, {})();
        }
    }

    void linger() {
        error_code ignored;
        tcpOf(stream_).socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
        lingering_ = true;
        closeAfter(kLingerTime);
        discard();
    }

    void discard() {
        if (watching_) return;
        buffer_.clear();
        tcpOf(stream_).expires_never();
        tcpOf(stream_).async_read_some(asio::buffer(discarded_), [self = self()](error_code error, size_t) {
            if (error) return self->close();
            self->discard();
        });
    }

    void close() {
        closed_ = true;
        timer_.cancel();
        error_code ignored;
        tcpOf(stream_).socket().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
        tcpOf(stream_).close();
    }

    const std::shared_ptr<HttpShared> shared_;
    Stream stream_;
    beast::flat_buffer buffer_;
    std::optional<http::request_parser<http::string_body>> parser_;
    HttpRequest request_;
    size_t reservedBody_ = 0;
    bool keepAlive_ = true, isHttp11_ = true, isHead_ = false;
    bool served_ = false;  // a request has been read
    bool idle_ = false;    // between requests
    bool watching_ = false;

    std::weak_ptr<Exchange> exchange_;
    std::function<void()> gone_;
    std::deque<std::string> unsent_, sending_;
    size_t nUnsent_ = 0;
    bool writing_ = false, ended_ = false, answered_ = false, lingering_ = false, closed_ = false;
    asio::steady_timer timer_;
    char discarded_[16 << 10];
};

}  // namespace

std::weak_ptr<HttpConnection> serveConnection(asio::ip::tcp::socket socket, asio::ssl::context* tls,
                                              std::shared_ptr<HttpShared> shared) {
    error_code ignored;
    socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    if (tls == nullptr) {
        const auto plain = std::make_shared<Connection<beast::tcp_stream>>(std::move(shared), std::move(socket));
        plain->start();
        return plain;
    }
    const auto secure =
        std::make_shared<Connection<beast::ssl_stream<beast::tcp_stream>>>(std::move(shared), std::move(socket), *tls);
    secure->start();
    return secure;
}

}  // namespace dllama
