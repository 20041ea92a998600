#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace dllama {

/// One line that is redrawn while bytes are worked through: on a terminal a bar with rate and time left, elsewhere
/// nothing until a tenth of the work takes longer than a few seconds. Erased when it is destroyed.
class ProgressBar {
  public:
    ProgressBar(std::FILE* out, std::string title);
    ~ProgressBar();
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    void update(size_t done, size_t total);

  private:
    using Clock = std::chrono::steady_clock;
    std::FILE* out_;
    std::string title_;
    bool terminal_;
    bool drawn_ = false;
    Clock::time_point begin_ = Clock::now();
    Clock::time_point last_ = begin_;
};

}  // namespace dllama
