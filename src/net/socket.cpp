#include "net/socket.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <future>
#include <thread>

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
void tune(int fd) {
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
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
    const size_t colon = text.ends_with(']') ? std::string::npos : text.rfind(':');
    Address address{text.substr(0, colon), kWorkerPort};
    if (address.host.starts_with('[') && address.host.ends_with(']'))
        address.host = address.host.substr(1, address.host.size() - 2);
    else if (address.host.find(':') != std::string::npos)
        throw ConfigError("address {}: an IPv6 address stands in brackets, as in [::1]:9999", text);
    if (address.host.empty() || address.host.find_first_of("[]") != std::string::npos)
        throw ConfigError("address {} is not host:port", text);
    if (colon == std::string::npos) return address;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, address.port);
    if (error != std::errc() || stop != end || address.port < 1 || address.port > 65535)
        throw ConfigError("address {}: the port must be from 1 to 65535", text);
    return address;
}

Socket::~Socket() {
    if (fd_ >= 0) ::close(fd_);
}

bool isLoopback(const std::string& host) {
    in_addr v4{};
    if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    return host == "localhost" || host == "::1";
}

std::vector<Endpoint> lookUp(const Address& address) {
    addrinfo hints{}, *list = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int failure = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
    if (failure != 0) throw ConnectionError("{}: {}", address.text(), ::gai_strerror(failure));
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, ::freeaddrinfo);
    std::vector<Endpoint> endpoints;
    for (const addrinfo* info = list; info != nullptr; info = info->ai_next) {
        Endpoint& endpoint = endpoints.emplace_back();
        std::memcpy(&endpoint.storage, info->ai_addr, info->ai_addrlen);
        endpoint.length = info->ai_addrlen;
    }
    return endpoints;
}

namespace {

/// What lookup() says, or ConnectionError at the deadline.
std::vector<Endpoint> lookUpBy(Deadline deadline, const Address& address,
                               const std::function<std::vector<Endpoint>(const Address&)>& lookup) {
    in6_addr number{};
    if (::inet_pton(AF_INET, address.host.c_str(), &number) == 1 ||
        ::inet_pton(AF_INET6, address.host.c_str(), &number) == 1)
        return lookup(address);  // nobody has to be asked
    // The system's resolver cannot be broken off: its thread ends when it does.
    auto task =
        std::make_shared<std::packaged_task<std::vector<Endpoint>()>>([lookup, address] { return lookup(address); });
    std::future<std::vector<Endpoint>> found = task->get_future();
    try {
        std::thread([task] { (*task)(); }).detach();
    } catch (const std::system_error& error) {
        throw ConnectionError("{}: no thread to look the name up: {}", address.text(), error.code().message());
    }
    if (found.wait_until(deadline) != std::future_status::ready)
        throw ConnectionError("{}: no name server answers in time", address.text());
    return found.get();
}

/// A socket that is being connected; 0, or why not.
int begin(const Endpoint& endpoint, Socket& socket) {
    socket = Socket(::socket(endpoint.storage.ss_family, SOCK_STREAM, 0));
    if (socket.fd() < 0) return errno;
    tune(socket.fd());
    const int result = ::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&endpoint.storage), endpoint.length);
    return result == 0 || errno == EINPROGRESS ? 0 : errno;
}

/// 0, or why a socket that is ready could not be connected.
int outcome(const Socket& socket) {
    int error = 0;
    socklen_t length = sizeof error;
    if (::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    // Where nobody listens on a port of this machine, the system may pick that port for this side, which then has
    // called itself.
    sockaddr_storage own{}, other{};
    socklen_t ownLength = sizeof own, otherLength = sizeof other;
    if (error == 0 && ::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&own), &ownLength) == 0 &&
        ::getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&other), &otherLength) == 0 &&
        ownLength == otherLength && std::memcmp(&own, &other, ownLength) == 0)
        error = ECONNREFUSED;
    return error;
}

}  // namespace

bool isThisMachine(const std::string& host) {
    if (isLoopback(host)) return true;
    std::vector<Endpoint> endpoints;
    try {
        endpoints = lookUpBy(after(std::chrono::seconds(2)), {host, 0}, lookUp);
    } catch (const ConnectionError&) {
        return false;
    }
    // Nobody else's address can be bound.
    return std::any_of(endpoints.begin(), endpoints.end(), [](const Endpoint& endpoint) {
        const Socket socket(::socket(endpoint.storage.ss_family, SOCK_DGRAM, 0));
        return ::bind(socket.fd(), reinterpret_cast<const sockaddr*>(&endpoint.storage), endpoint.length) == 0;
    });
}

Socket connectTcp(const Address& address, Deadline deadline,
                  const std::function<std::vector<Endpoint>(const Address&)>& lookup) {
    constexpr std::chrono::milliseconds kNextAddress{250};
    const std::vector<Endpoint> endpoints = lookUpBy(deadline, address, lookup);
    // All of them get their turn.
    const auto pace = std::min<Clock::duration>(kNextAddress, (deadline - Clock::now()) / (endpoints.size() + 1));
    std::vector<Socket> attempts;
    std::vector<pollfd> waiting;
    Clock::time_point nextBegin{};
    int failure = ETIMEDOUT;
    for (size_t next = 0;;) {
        const Clock::time_point now = Clock::now();
        if (now >= deadline || (attempts.empty() && next == endpoints.size()))
            throw ConnectionError("{}: {}", address.text(), std::strerror(failure));
        if (next < endpoints.size() && (attempts.empty() || now >= nextBegin)) {
            Socket socket;
            const int refused = begin(endpoints[next++], socket);
            if (refused != 0) {
                failure = refused;
                continue;
            }
            attempts.push_back(std::move(socket));
            nextBegin = now + pace;
        }
        waiting.clear();
        for (const Socket& socket : attempts) waiting.push_back({socket.fd(), POLLOUT, 0});
        const Deadline until = next < endpoints.size() ? std::min(deadline, nextBegin) : deadline;
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now).count();
        ::poll(waiting.data(), waiting.size(), static_cast<int>(std::clamp<long long>(left, 0, 60'000)));
        for (size_t i = attempts.size(); i-- > 0;) {
            if (waiting[i].revents == 0) continue;
            const int error = outcome(attempts[i]);
            if (error == 0) return std::move(attempts[i]);
            failure = error;
            attempts.erase(attempts.begin() + static_cast<std::ptrdiff_t>(i));
        }
    }
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
    tune(socket.native_handle());
    return Incoming{Socket(socket.release()), {peer.address().to_string(), peer.port()}};
}

}  // namespace dllama
