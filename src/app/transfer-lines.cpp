#include "app/transfer-lines.hpp"

#include <fmt/format.h>
#include <unistd.h>

namespace dllama {

TransferLines::TransferLines(std::FILE* out) : out_(out), terminal_(::isatty(::fileno(out)) == 1) {}

void TransferLines::update(int rank, const std::string& node, size_t done, size_t total) {
    const std::lock_guard lock(mutex_);
    Line& line = lines_[rank];
    if (line.node.empty() || done < line.done) {
        line = {};
        line.node = node;
    }
    line.done = done;
    line.total = total;
    line.last = Clock::now();
    if (terminal_ && (done == total || line.last - drawn_ > std::chrono::milliseconds(200)))
        draw();
    else if (!terminal_ && done == total)
        fmt::print(out_, "{}\n", text(line));
}

std::string TransferLines::text(const Line& line) {
    const double seconds = std::chrono::duration<double>(line.last - line.begin).count();
    const double rate = seconds > 0.0 ? static_cast<double>(line.done) / seconds : 0.0;
    const double left = rate > 0.0 ? static_cast<double>(line.total - line.done) / rate : 0.0;
    return fmt::format("💿 {:<24} {:>7} of {:>7} MB {:>6.0f} MB/s {:>5.0f} s left", line.node, line.done >> 20,
                       line.total >> 20, rate / 1048576.0, left);
}

void TransferLines::draw() {
    if (nDrawn_ > 0) fmt::print(out_, "\x1b[{}A", nDrawn_);
    for (const auto& [rank, line] : lines_) fmt::print(out_, "\r{}\x1b[K\n", text(line));
    std::fflush(out_);
    nDrawn_ = lines_.size();
    drawn_ = Clock::now();
}

}  // namespace dllama
