#include "text/chat-writer.hpp"

#include <algorithm>
#include <ctime>

namespace dllama::chat {

std::string_view stripLineFeedsLeft(std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
    return text;
}

std::string_view stripLineFeedsRight(std::string_view text) {
    return text.substr(0, text.find_last_not_of('\n') + 1);
}

SplitAnswer splitAnswer(const ChatMessage& message) {
    constexpr std::string_view kOpen = "<think>";
    constexpr std::string_view kClose = "</think>";
    if (message.reasoning) return {*message.reasoning, message.content};
    const std::string_view all = message.content;
    const size_t first = all.find(kClose);
    if (first == std::string_view::npos) return {"", message.content};
    std::string_view reasoning = stripLineFeedsRight(all.substr(0, first));
    if (const size_t open = reasoning.rfind(kOpen); open != std::string_view::npos) {
        reasoning.remove_prefix(open + kOpen.size());
    }
    const std::string_view content = all.substr(all.rfind(kClose) + kClose.size());
    return {std::string(stripLineFeedsLeft(reasoning)), std::string(stripLineFeedsLeft(content))};
}

PythonValue parseArguments(const ToolCall& call) {
    if (call.arguments.find_first_not_of(" \t\r\n") == std::string::npos) {
        PythonValue none;
        none.type = PythonValue::Type::Object;
        return none;
    }
    PythonValue arguments = parseJson(call.arguments, fmt::format("the arguments of the call of {}", call.name));
    if (!arguments.isObject()) throw ConfigError("the arguments of the call of {} are not a JSON object", call.name);
    return arguments;
}

std::vector<PythonValue> parseTools(const ChatRequest& request) {
    std::vector<PythonValue> tools;
    for (const std::string& text : request.tools) {
        tools.push_back(parseJson(text, fmt::format("tool {}", tools.size())));
        if (!tools.back().isObject()) throw ConfigError("tool {} is not a JSON object", tools.size() - 1);
    }
    return tools;
}

const PythonValue& functionOf(const PythonValue& tool) {
    const PythonValue* function = tool.find("function");
    return function && function->isTrue() ? *function : tool;
}

bool isTool(const ChatRequest& request, size_t index) {
    return index < request.messages.size() && request.messages[index].role == "tool";
}

std::optional<size_t> lastUserIndex(const ChatRequest& request) {
    for (size_t i = request.messages.size(); i-- > 0;) {
        if (request.messages[i].role == "user") return i;
    }
    return std::nullopt;
}

CalendarDate dateOf(const ChatRequest& request) {
    if (request.today) return *request.today;
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    return {local.tm_year + 1900, local.tm_mon + 1, local.tm_mday};
}

}  // namespace dllama::chat
