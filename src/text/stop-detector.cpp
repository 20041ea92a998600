#include "text/stop-detector.hpp"

#include <algorithm>
#include <utility>

namespace dllama {
namespace {

/// How many bytes at the end of `text` are the beginning of `stop`.
size_t openEnd(std::string_view text, std::string_view stop) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; n--) {
        if (text.ends_with(stop.substr(0, n))) return n;
    }
    return 0;
}

}  // namespace

StopDetector::StopDetector(std::vector<std::string> stops) : stops_(std::move(stops)) {
    std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string StopDetector::push(std::string_view text) {
    if (stopped_) return {};
    held_ += text;
    // The stop text that ends first wins, as it does when the text comes byte by byte.
    size_t begin = 0;
    size_t end = std::string::npos;
    size_t hold = 0;
    for (const std::string& stop : stops_) {
        const size_t found = held_.find(stop);
        if (found == std::string::npos) {
            hold = std::max(hold, openEnd(held_, stop));
        } else if (std::pair(found + stop.size(), found) < std::pair(end, begin)) {
            begin = found;
            end = found + stop.size();
        }
    }
    if (end != std::string::npos) {
        stopped_ = true;
        found_ = held_.substr(begin, end - begin);
        std::string shown = held_.substr(0, begin);
        held_.clear();
        return shown;
    }
    std::string shown = held_.substr(0, held_.size() - hold);
    held_.erase(0, shown.size());
    return shown;
}

std::string StopDetector::flush() {
    return std::exchange(held_, {});
}

}  // namespace dllama
