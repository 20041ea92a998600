#include "base/trace.hpp"

#include <nlohmann/json.hpp>
#include <span>

#include "base/errors.hpp"

namespace dllama {

namespace {

/// Microseconds, the format's unit.
double microseconds(Trace::Clock::duration duration) {
    return std::chrono::duration<double, std::micro>(duration).count();
}

}  // namespace

Trace::Trace(const std::string& path) : file_(path) {
    constexpr std::string_view kHead = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [";
    file_.write(std::as_bytes(std::span(kHead)));
}

Trace::~Trace() {
    try {
        finish();
    } catch (const FormatError&) {
        // Whoever wants to know calls finish().
    }
}

void Trace::write(const std::string& event) {
    const std::lock_guard lock(mutex_);
    if (isFinished_) return;
    const std::string text = (isFirst_ ? "\n" : ",\n") + event;
    isFirst_ = false;
    file_.write(std::as_bytes(std::span(text)));
}

void Trace::nameRank(int rank, const std::string& device) {
    const auto name = [&](const char* what, Lane lane, const std::string& text) {
        write(nlohmann::json({{"ph", "M"},
                              {"name", what},
                              {"pid", rank},
                              {"tid", static_cast<int>(lane)},
                              {"args", {{"name", text}}}})
                  .dump());
    };
    name("process_name", Lane::Work, fmt::format("rank {}: {}", rank, device));
    name("thread_name", Lane::Work, "steps and operations");
    name("thread_name", Lane::Collectives, "collectives behind other work");
}

void Trace::add(int rank, Lane lane, const char* category, std::string_view name, Clock::time_point begin,
                std::initializer_list<Argument> arguments) {
    std::string event = fmt::format(
        R"({{"ph": "X", "cat": "{}", "name": "{}", "pid": {}, "tid": {}, "ts": {:.3f}, "dur": {:.3f}, "args": {{)",
        category, name, rank, static_cast<int>(lane), microseconds(begin - start_), microseconds(Clock::now() - begin));
    const char* separator = "";
    for (const auto& [key, value] : arguments) {
        if (key == nullptr) continue;
        event += fmt::format(R"({}"{}": {})", separator, key, value);
        separator = ", ";
    }
    write(event + "}}");
}

void Trace::finish() {
    const std::lock_guard lock(mutex_);
    if (isFinished_) return;
    isFinished_ = true;
    constexpr std::string_view kEnd = "\n]}\n";
    file_.write(std::as_bytes(std::span(kEnd)));
    file_.finish();
}

}  // namespace dllama
