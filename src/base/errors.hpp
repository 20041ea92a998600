#pragma once

#include <fmt/format.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

/// The three kinds of failure. Bad input, file or peer: one of the exceptions below, carrying the value and the limit;
/// main() prints it as one line. A lost peer: PeerLost, which the engine survives. Programmer error: DLLAMA_CHECK.
namespace dllama {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
    template <typename... Args>
    explicit Error(fmt::format_string<Args...> format, Args&&... args)
        : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

/// A flag, a combination of flags or a model that this program or machine cannot serve.
struct ConfigError : Error {
    using Error::Error;
};
/// A file that is missing, damaged or of the wrong kind.
struct FormatError : Error {
    using Error::Error;
};
/// A GPU that is missing, too old, out of memory or failing.
struct CudaError : Error {
    using Error::Error;
};
/// A peer that breaks the protocol.
struct ProtocolError : Error {
    using Error::Error;
};
/// A peer that died, froze or was unplugged. `rank` is the lost rank.
struct PeerLost : Error {
    template <typename... Args>
    PeerLost(int rank, fmt::format_string<Args...> format, Args&&... args)
        : Error(format, std::forward<Args>(args)...), rank(rank) {}
    int rank;
};

/// The user wants no more of what is under way.
struct Interrupted : Error {
    using Error::Error;
};

[[noreturn]] inline void checkFailed(const char* condition, const char* file, int line) {
    fmt::print(stderr, "internal error: {} does not hold at {}:{}\n", condition, file, line);
    std::abort();
}

}  // namespace dllama

/// States what only a programmer's error can break. Always on.
#define DLLAMA_CHECK(condition) \
    ((condition) ? static_cast<void>(0) : ::dllama::checkFailed(#condition, __FILE__, __LINE__))
