#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/output-file.hpp"

namespace dllama {

/// What a program did and when, as a file in Chrome's trace format (https://ui.perfetto.dev shows it): a rank is a
/// process, and each of its lanes a thread. Any thread may add to it.
class Trace {
  public:
    using Clock = std::chrono::steady_clock;
    /// A null key: none.
    using Argument = std::pair<const char*, int64_t>;
    enum class Lane { Work, Collectives };

    /// Throws FormatError, naming the path, if it cannot be written; so do all functions here.
    explicit Trace(const std::string& path);
    /// Finishes what can be finished.
    ~Trace();

    void nameRank(int rank, const std::string& device);
    /// An event from `begin` to now. Those of one rank and lane must be nested or apart. `category` and `name` hold no
    /// character that JSON escapes.
    void add(int rank, Lane lane, const char* category, std::string_view name, Clock::time_point begin,
             std::initializer_list<Argument> arguments = {});
    /// Completes the file; nothing is added afterwards.
    void finish();

  private:
    void write(const std::string& event);

    const Clock::time_point start_ = Clock::now();
    std::mutex mutex_;  // of what follows
    OutputFile file_;
    bool isFirst_ = true;
    bool isFinished_ = false;
};

}  // namespace dllama
