#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace dllama {

/// What the machines of one cluster share and nobody else knows. Whoever holds it can act as any of them.
class Secret {
  public:
    /// Base64 of 16 bytes or more: a shorter secret could be guessed from a recorded handshake (RFC 9257). Throws
    /// ConfigError; `origin` names where the text comes from, the text itself is never told.
    static Secret parse(std::string_view base64, const std::string& origin);
    /// Throws ConfigError for a missing file and for one that others than its owner may read.
    static Secret readFile(const std::string& path);
    /// Writes 32 random bytes to a new file of mode 0600. Throws ConfigError if the file exists.
    static void generateFile(const std::string& path);

    using Key = std::array<unsigned char, 32>;
    /// HKDF-SHA256 of the secret for one purpose: different purposes give unrelated keys.
    Key derive(std::string_view purpose) const;

  private:
    std::vector<unsigned char> bytes_;
};

}  // namespace dllama
