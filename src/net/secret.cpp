#include "net/secret.hpp"

#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/errors.hpp"
#include "net/socket.hpp"

namespace dllama {

namespace {

constexpr size_t kMinBytes = 16, kNewBytes = 32, kMaxText = 1024;

bool isSpace(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/// systemd 254 and newer let a unit's user read its credentials by an access list, which looks like a group's right to
/// read. The folder they lie in is closed to everybody else.
bool isCredential(const std::string& path) {
    const char* folder = std::getenv("CREDENTIALS_DIRECTORY");
    return folder != nullptr && *folder != '\0' && path.starts_with(std::string(folder) + "/");
}

}  // namespace

Secret Secret::parse(std::string_view base64, const std::string& origin) {
    while (!base64.empty() && isSpace(base64.back())) base64.remove_suffix(1);
    while (!base64.empty() && isSpace(base64.front())) base64.remove_prefix(1);
    if (base64.empty()) throw ConfigError("{}: the secret is empty (make one: dllama keygen FILE)", origin);
    if (base64.size() > kMaxText) throw ConfigError("{}: a secret has at most {} characters", origin, kMaxText);
    Secret secret;
    secret.bytes_.resize(base64.size() / 4 * 3 + 3);
    const int n = EVP_DecodeBlock(secret.bytes_.data(), reinterpret_cast<const unsigned char*>(base64.data()),
                                  static_cast<int>(base64.size()));
    if (n < 0) throw ConfigError("{}: the secret is not base64", origin);
    size_t size = static_cast<size_t>(n);  // padding counts as zero bytes
    for (size_t i = base64.size(); i > 0 && base64[i - 1] == '='; i--) size--;
    if (size < kMinBytes)
        throw ConfigError("{}: the secret has {} bytes, must have {} or more (make one: dllama keygen FILE)", origin,
                          size, kMinBytes);
    secret.bytes_.resize(size);
    return secret;
}

Secret Secret::readFile(const std::string& path) {
    const Socket file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info {};
    if (file.fd() < 0 || ::fstat(file.fd(), &info) != 0) throw ConfigError("{}: {}", path, std::strerror(errno));
    if ((info.st_mode & (isCredential(path) ? 037 : 077)) != 0)
        throw ConfigError("{}: others than its owner may read it (mode {:o}); chmod 600 it", path,
                          info.st_mode & 0777u);
    std::string text(kMaxText + 2, '\0');
    const ssize_t n = ::read(file.fd(), text.data(), text.size());
    if (n < 0) throw ConfigError("{}: {}", path, std::strerror(errno));
    return parse(std::string_view(text).substr(0, static_cast<size_t>(n)), path);
}

void Secret::generateFile(const std::string& path) {
    unsigned char bytes[kNewBytes];
    if (RAND_bytes(bytes, sizeof bytes) != 1) throw Error("the system gives no random numbers");
    unsigned char text[kNewBytes * 2];
    const int n = EVP_EncodeBlock(text, bytes, sizeof bytes);
    text[n] = '\n';
    const Socket file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (file.fd() < 0) throw ConfigError("{}: {}", path, std::strerror(errno));
    if (::write(file.fd(), text, n + 1) != n + 1 || ::fsync(file.fd()) != 0) {
        const int error = errno;
        ::unlink(path.c_str());  // half a secret
        throw ConfigError("{}: {}", path, std::strerror(error));
    }
}

Secret::Key Secret::derive(std::string_view purpose) const {
    Key key;
    EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
    EVP_KDF_CTX* context = EVP_KDF_CTX_new(kdf);
    EVP_KDF_free(kdf);
    char digest[] = "SHA256";
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<unsigned char*>(bytes_.data()), bytes_.size()),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, const_cast<char*>(purpose.data()), purpose.size()),
        OSSL_PARAM_construct_end(),
    };
    const int done = EVP_KDF_derive(context, key.data(), key.size(), params);
    EVP_KDF_CTX_free(context);
    if (done != 1) throw Error("OpenSSL cannot derive a key");
    return key;
}

}  // namespace dllama
