#include "app/progress-bar.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

namespace dllama {

ProgressBar::ProgressBar(std::FILE* out, std::string title)
    : out_(out), title_(std::move(title)), terminal_(::isatty(::fileno(out)) != 0) {}

ProgressBar::~ProgressBar() {
    if (!terminal_ || !drawn_) return;
    fmt::print(out_, "\r\033[K");
    std::fflush(out_);
}

void ProgressBar::update(size_t done, size_t total) {
    using namespace std::chrono_literals;
    const auto now = Clock::now();
    // A terminal is redrawn ten times a second; a log gets a line every ten seconds.
    if (now - last_ < (terminal_ ? Clock::duration(100ms) : Clock::duration(10s))) return;
    last_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const double rate = static_cast<double>(done) / seconds;
    const int left = static_cast<int>(static_cast<double>(total - done) / rate);
    const std::string state =
        fmt::format("{} / {} MB, {:.0f} MB/s, {} s left", done >> 20, total >> 20, rate / 1e6, left);
    if (!terminal_) {
        fmt::print(out_, "{}: {}\n", title_, state);
    } else {
        constexpr size_t kWidth = 24;
        const size_t full = total > 0 ? kWidth * done / total : kWidth;
        std::string bar;
        for (size_t i = 0; i < kWidth; i++) bar += i < full ? "█" : "░";
        fmt::print(out_, "\r\033[K{} {} {}", title_, bar, state);
        drawn_ = true;
    }
    std::fflush(out_);
}

}  // namespace dllama
