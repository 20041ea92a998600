#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// HTTP as the routes see it: no library's types, no sockets.
namespace dllama {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
    std::string method;
    std::string path;     // without the query
    HttpHeaders headers;  // names in lower case
    std::string body;

    /// The value of a header, its name in lower case; empty if there is none.
    std::string_view header(std::string_view name) const;
};

struct HttpResponse {
    int status = 200;
    std::string contentType = "application/json";
    std::string body = {};
    HttpHeaders headers = {};
};

/// A request waiting for its answer: either send(), or start(), any number of write() and end(). All of it belongs to
/// the thread of the server's sockets. When the client has left, the calls do nothing.
class HttpExchange {
  public:
    virtual ~HttpExchange() = default;
    virtual void send(HttpResponse response) = 0;
    /// A body that comes in parts. `head.body` is its first one.
    virtual void start(HttpResponse head) = 0;
    virtual void write(std::string part) = 0;
    virtual void end() = 0;
    /// Bytes that have been written and not taken by the client yet.
    virtual size_t nUnsent() const = 0;
    /// Called at most once, if the client leaves before the answer has ended.
    virtual void onGone(std::function<void()> gone) = 0;
};

/// Answers requests, in the thread of the server's sockets: it must not block.
class HttpHandler {
  public:
    virtual ~HttpHandler() = default;
    /// Before the body is read: an answer refuses the request, and its body is not read. The status is set, the rest
    /// may be.
    virtual bool admit(const HttpRequest& head, HttpResponse& refusal) = 0;
    virtual void handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) = 0;
    /// An answer for a request that is no HTTP, too large or too slow.
    virtual HttpResponse faulty(int status, const std::string& path, const std::string& message) = 0;
};

}  // namespace dllama
