#pragma once

#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>

namespace dllama {

/// A line for each node while weights are on their way: size, rate, time left. Drawn anew on a terminal; elsewhere each
/// node's last line only. Called from any thread.
class TransferLines {
  public:
    explicit TransferLines(std::FILE* out);
    void update(int rank, const std::string& node, size_t done, size_t total);

  private:
    using Clock = std::chrono::steady_clock;
    struct Line {
        std::string node;
        size_t done = 0, total = 0;
        Clock::time_point begin = Clock::now(), last = begin;
    };

    static std::string text(const Line& line);
    void draw();

    std::FILE* out_;
    bool terminal_;
    std::mutex mutex_;
    std::map<int, Line> lines_;
    size_t nDrawn_ = 0;
    Clock::time_point drawn_{};
};

}  // namespace dllama
