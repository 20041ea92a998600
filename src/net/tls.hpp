#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "net/connection.hpp"
#include "net/secret.hpp"

namespace dllama {

/// TLS 1.3 with a pre-shared key and an ephemeral exchange, without certificates. The client names the key by an
/// identity; the key is derived from the secret and that identity, so that each pair of ranks, direction and purpose
/// has its own. Throws ProtocolError if the peer has another secret, or none, and ConnectionError if it goes away.
std::unique_ptr<Connection> connectTls(Socket socket, std::string peer, const Secret& secret,
                                       const std::string& identity, Deadline deadline);

/// As the server; `identity` becomes what the client called itself. `isKnown` decides whether such a name can exist.
std::unique_ptr<Connection> acceptTls(Socket socket, std::string peer, const Secret& secret,
                                      const std::function<bool(const std::string&)>& isKnown, std::string& identity,
                                      Deadline deadline);

}  // namespace dllama
