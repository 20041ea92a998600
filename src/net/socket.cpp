#include "net/socket.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <charconv>

namespace dllama {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

void setOption(int fd, int level, int name, int value) {
    // Options are advice: a system that lacks one works all the same.
    ::setsockopt(fd, level, name, &value, sizeof value);
}

/// A process that is started later must not hold the line open.
void closeOnExec(int fd) {
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/// No delay for small messages; a dead line is found by the kernel too, should heartbeats not run yet.
void tune(tcp::socket& socket) {
    socket.non_blocking(true);
    const int fd = socket.native_handle();
    closeOnExec(fd);
    setOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    setOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    setOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, 2);
    setOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
    setOption(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
#endif
#ifdef TCP_USER_TIMEOUT
    setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000);
#endif
}

}  // namespace

std::string Address::text() const {
    return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

Address parseAddress(const std::string& text) {
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos || colon == 0) throw ConfigError("address {} is not host:port", text);
    Address address{text.substr(0, colon), 0};
    if (address.host.front() == '[' && address.host.back() == ']')
        address.host = address.host.substr(1, address.host.size() - 2);
    else if (address.host.find(':') != std::string::npos)
        throw ConfigError("address {}: an IPv6 address stands in brackets, as in [::1]:9999", text);
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
    if (error != std::errc() || stop != end || address.port < 1 || address.port > 65535)
        throw ConfigError("address {}: the port must be from 1 to 65535", text);
    return address;
}

Socket::~Socket() {
    if (fd_ >= 0) ::close(fd_);
}

Socket connectTcp(const Address& address, Deadline deadline) {
    asio::io_context io;
    tcp::resolver resolver(io);
    tcp::socket socket(io);
    boost::system::error_code result = asio::error::timed_out;
    resolver.async_resolve(address.host, std::to_string(address.port),
                           [&](boost::system::error_code error, const tcp::resolver::results_type& endpoints) {
                               if (error) {
                                   result = error;
                                   return;
                               }
                               asio::async_connect(
                                   socket, endpoints,
                                   [&](boost::system::error_code failure, const tcp::endpoint&) { result = failure; });
                           });
    io.run_until(deadline);
    if (result) throw ConnectionError("{}: {}", address.text(), result.message());
    tune(socket);
    return Socket(socket.release());
}

struct Listener::State {
    asio::io_context io;
    tcp::acceptor acceptor{io};
};

Listener::Listener(const Address& address) : state_(std::make_unique<State>()) {
    try {
        tcp::resolver resolver(state_->io);
        const auto endpoints = resolver.resolve(address.host, std::to_string(address.port));
        const tcp::endpoint endpoint = endpoints.begin()->endpoint();
        state_->acceptor.open(endpoint.protocol());
        closeOnExec(state_->acceptor.native_handle());
        state_->acceptor.set_option(tcp::acceptor::reuse_address(true));
        state_->acceptor.bind(endpoint);
        state_->acceptor.listen();
        state_->acceptor.non_blocking(true);
    } catch (const boost::system::system_error& error) {
        throw ConfigError("cannot listen on {}: {}", address.text(), error.code().message());
    }
}

Listener::~Listener() = default;

int Listener::port() const {
    return state_->acceptor.local_endpoint().port();
}

bool Listener::isPublic() const {
    return !state_->acceptor.local_endpoint().address().is_loopback();
}

std::optional<Incoming> Listener::accept(std::chrono::milliseconds time) {
    pollfd waiting{state_->acceptor.native_handle(), POLLIN, 0};
    if (::poll(&waiting, 1, static_cast<int>(time.count())) <= 0) return std::nullopt;
    boost::system::error_code error;
    tcp::endpoint peer;
    tcp::socket socket = state_->acceptor.accept(state_->io, peer, error);
    const bool noRoom = error == boost::system::errc::too_many_files_open ||
                        error == boost::system::errc::too_many_files_open_in_system ||
                        error == boost::system::errc::no_buffer_space ||
                        error == boost::system::errc::not_enough_memory;
    if (noRoom) throw ConnectionError("{}", error.message());
    if (error) return std::nullopt;  // gone again: the caller comes back
    tune(socket);
    return Incoming{Socket(socket.release()), {peer.address().to_string(), peer.port()}};
}

}  // namespace dllama
