#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <memory>

#include "server/http-server.hpp"
#include "server/http.hpp"

/// One client's connection. Only the .cpp files of the HTTP server include this.
namespace dllama {

/// What connections share; in the thread of the server's sockets.
struct HttpShared {
    const HttpLimits limits;
    HttpHandler& handler;
    bool draining = false;
    int nConnections = 0;
    size_t bodyBytes = 0;  // set aside for bodies that are being read
    std::function<void()> connectionClosed = {};
};

class HttpConnection {
  public:
    virtual ~HttpConnection() = default;
    /// Closes it if it is between two requests.
    virtual void closeIfIdle() = 0;
};

/// Begins to serve; the connection lives as long as it has something to do. `tls` is null for plain HTTP.
std::weak_ptr<HttpConnection> serveConnection(boost::asio::ip::tcp::socket socket, boost::asio::ssl::context* tls,
                                              std::shared_ptr<HttpShared> shared);

}  // namespace dllama
