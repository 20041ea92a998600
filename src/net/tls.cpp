#include "net/tls.hpp"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>

#include <mutex>

namespace dllama {

namespace {

/// A key must be renewed before 2^24 records (RFC 8446, 5.5); this library does not do so by itself.
constexpr uint64_t kRecordsPerKey = uint64_t{1} << 22;
constexpr size_t kMaxIdentity = 128;

template <typename T, void (*Free)(T*)>
struct Deleter {
    void operator()(T* object) const { Free(object); }
};
using ContextPointer = std::unique_ptr<SSL_CTX, Deleter<SSL_CTX, SSL_CTX_free>>;
using SslPointer = std::unique_ptr<SSL, Deleter<SSL, SSL_free>>;

/// What the callbacks of one handshake need. Lives as long as the handshake.
struct Handshake {
    const Secret& secret;
    std::string identity;
    const std::function<bool(const std::string&)>* isKnown = nullptr;
};

/// Why the last call failed; `ended` if only because the peer went away, with or without a farewell.
struct Failure {
    bool ended = false;
    int reason = 0;
    std::string text;
};

Failure lastFailure(int sslError) {
    const unsigned long code = ERR_get_error();
    ERR_clear_error();
    const int reason = ERR_GET_REASON(code);
    const char* text = code != 0 ? ERR_reason_error_string(code) : nullptr;
    const bool ended = sslError == SSL_ERROR_ZERO_RETURN || sslError == SSL_ERROR_SYSCALL || text == nullptr ||
                       reason == SSL_R_UNEXPECTED_EOF_WHILE_READING;
    return {ended, reason, ended ? "closed the connection" : text};
}

/// What the two sides say when their keys differ.
bool meansOtherSecret(int reason) {
    return reason == SSL_R_BINDER_DOES_NOT_VERIFY || reason == SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER;
}

/// A session that carries nothing but the pre-shared key. Any SHA-256 suite may then be negotiated.
SSL_SESSION* keySession(SSL* ssl, const Handshake& handshake) {
    constexpr unsigned char kAes128GcmSha256[] = {0x13, 0x01};
    const Secret::Key key = handshake.secret.derive(handshake.identity);
    SSL_SESSION* session = SSL_SESSION_new();
    if (session != nullptr && SSL_SESSION_set1_master_key(session, key.data(), key.size()) == 1 &&
        SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, kAes128GcmSha256)) == 1 &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1)
        return session;
    SSL_SESSION_free(session);
    return nullptr;
}

Handshake& handshakeOf(SSL* ssl) {
    return *static_cast<Handshake*>(SSL_get_app_data(ssl));
}

int useKey(SSL* ssl, const EVP_MD*, const unsigned char** id, size_t* length, SSL_SESSION** session) {
    const Handshake& handshake = handshakeOf(ssl);
    *session = keySession(ssl, handshake);
    if (*session == nullptr) return 0;
    *id = reinterpret_cast<const unsigned char*>(handshake.identity.data());
    *length = handshake.identity.size();
    return 1;
}

int findKey(SSL* ssl, const unsigned char* id, size_t length, SSL_SESSION** session) {
    Handshake& handshake = handshakeOf(ssl);
    *session = nullptr;
    if (length > kMaxIdentity) return 1;  // unknown: the handshake fails
    handshake.identity.assign(reinterpret_cast<const char*>(id), length);
    if (!(*handshake.isKnown)(handshake.identity)) return 1;
    *session = keySession(ssl, handshake);
    return *session != nullptr;
}

ContextPointer makeContext(bool server) {
    ContextPointer context(SSL_CTX_new(server ? TLS_server_method() : TLS_client_method()));
    SSL_CTX* c = context.get();
    if (c == nullptr || SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) != 1) throw Error("OpenSSL has no TLS 1.3");
    SSL_CTX_set_ciphersuites(c, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256");
    SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    // One read() for several records.
    SSL_CTX_set_read_ahead(c, 1);
    SSL_CTX_set_default_read_buffer_len(c, 65536);
    SSL_CTX_set_num_tickets(c, 0);
    // A client that accepts no certificate cannot be talked into a handshake without the key. On the server this
    // option would make OpenSSL 3.0 refuse keys; it has no certificate to offer anyway.
    if (!server) SSL_CTX_set_verify(c, SSL_VERIFY_PEER, nullptr);
    if (server)
        SSL_CTX_set_psk_find_session_callback(c, findKey);
    else
        SSL_CTX_set_psk_use_session_callback(c, useKey);
    return context;
}

class TlsConnection final : public Connection {
  public:
    TlsConnection(Socket socket, std::string peer, ContextPointer context)
        : Connection(std::move(socket), std::move(peer)), context_(std::move(context)), ssl_(SSL_new(context_.get())) {
        if (!ssl_ || SSL_set_fd(ssl_.get(), fd()) != 1) throw Error("OpenSSL cannot open a connection");
    }

    void shakeHands(Handshake& handshake, bool server, Deadline deadline) {
        SSL_set_app_data(ssl_.get(), &handshake);
        for (;;) {
            ERR_clear_error();
            const int result = server ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get());
            if (result == 1) break;
            const int error = SSL_get_error(ssl_.get(), result);
            if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) refuse(lastFailure(error));
            wait(error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, deadline, "the TLS handshake");
        }
        SSL_set_app_data(ssl_.get(), nullptr);
        if (SSL_session_reused(ssl_.get()) != 1)
            throw ProtocolError("{}: the TLS handshake did not use the secret", peer_);
    }

    // OpenSSL allows one call at a time on a connection; all calls here return at once.
    size_t trySend(std::span<const std::byte> bytes) override {
        const std::lock_guard lock(mutex_);
        ERR_clear_error();
        if (++nWrites_ % kRecordsPerKey == 0) SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED);
        size_t n = 0;
        const int result = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &n);
        if (result != 1) return check(result);
        sent_.fetch_add(n, std::memory_order_relaxed);
        return n;
    }

    size_t tryReceive(std::span<std::byte> bytes) override {
        const std::lock_guard lock(mutex_);
        ERR_clear_error();
        size_t n = 0;
        const int result = SSL_read_ex(ssl_.get(), bytes.data(), bytes.size(), &n);
        if (result != 1) return check(result);
        received_.fetch_add(n, std::memory_order_relaxed);
        return n;
    }

  private:
    size_t check(int result) {
        const int error = SSL_get_error(ssl_.get(), result);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) return 0;
        throw ConnectionError("{}: {}", peer_, lastFailure(error).text);
    }

    [[noreturn]] void refuse(const Failure& failure) const {
        if (failure.ended) throw ConnectionError("{}: closed the connection in the TLS handshake", peer_);
        if (meansOtherSecret(failure.reason)) throw ProtocolError("{}: it has another secret", peer_);
        throw ProtocolError("{}: no TLS with a secret ({})", peer_, failure.text);
    }

    ContextPointer context_;
    SslPointer ssl_;
    std::mutex mutex_;
    uint64_t nWrites_ = 0;
};

}  // namespace

std::unique_ptr<Connection> connectTls(Socket socket, std::string peer, const Secret& secret,
                                       const std::string& identity, Deadline deadline) {
    auto connection = std::make_unique<TlsConnection>(std::move(socket), std::move(peer), makeContext(false));
    Handshake handshake{secret, identity};
    connection->shakeHands(handshake, false, deadline);
    return connection;
}

std::unique_ptr<Connection> acceptTls(Socket socket, std::string peer, const Secret& secret,
                                      const std::function<bool(const std::string&)>& isKnown, std::string& identity,
                                      Deadline deadline) {
    auto connection = std::make_unique<TlsConnection>(std::move(socket), std::move(peer), makeContext(true));
    Handshake handshake{secret, {}, &isKnown};
    connection->shakeHands(handshake, true, deadline);
    identity = handshake.identity;
    return connection;
}

}  // namespace dllama
