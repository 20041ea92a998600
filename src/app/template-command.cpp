#include <charconv>
#include <nlohmann/json.hpp>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "text/chat-format.hpp"
#include "text/chat-output.hpp"
#include "text/chat-request.hpp"

namespace dllama {

namespace {

ChatFormat chosenFormat(const TemplateOptions& options) {
    if (!options.family.empty()) return chatFormatByName(options.family);
    const std::string path = findTokenizer(options.tokenizer);
    const ChatChoice choice = chooseChatFormat(readTokenizerFile(path));
    if (choice.format == ChatFormat::None) throw ConfigError("{}: no chat format: {}", path, choice.reason);
    return choice.format;
}

CalendarDate parseDate(const std::string& text) {
    CalendarDate date;
    const auto number = [&](size_t at, size_t length, int& out) {
        const char* end = text.data() + at + length;
        const auto [stop, error] = std::from_chars(text.data() + at, end, out);
        return error == std::errc() && stop == end;
    };
    constexpr int kDays[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (text.size() != 10 || text[4] != '-' || text[7] != '-' || !number(0, 4, date.year) ||
        !number(5, 2, date.month) || !number(8, 2, date.day) || date.year < 0 || date.month < 1 || date.month > 12 ||
        date.day < 1 || date.day > kDays[date.month - 1])
        throw ConfigError("--date {} is not a date like 2025-07-15", text);
    return date;
}

/// The message that a generated text is, as the API would answer it.
void printParsed(ChatFormat format, const TemplateOptions& options) {
    std::vector<std::string> tools;
    if (!options.tools.empty()) {
        const PythonValue list = parseJson(readTextFile(options.tools), options.tools);
        if (list.type != PythonValue::Type::List) throw ConfigError("{} is not a JSON list of tools", options.tools);
        for (const PythonValue& tool : list.items) tools.push_back(toPythonJson(tool));
    }
    // The prompt that belongs to the text tells whether it begins inside a thought.
    const ChatRequest question = {.messages = {{"user", "?"}}, .tools = tools};
    ChatOutputParser parser(format, tools, renderChat(format, question).endsInsideThink && !options.thinkClosed);
    AnswerCollector collector;
    collector.add(parser.push(readTextFile(options.parse)));
    collector.add(parser.finish(options.truncated));
    const ParsedAnswer answer = collector.answer(options.truncated);
    nlohmann::ordered_json message;
    message["reasoning_content"] = nullptr;
    if (answer.reasoning) message["reasoning_content"] = *answer.reasoning;
    message["content"] = nullptr;
    if (answer.content) message["content"] = *answer.content;
    message["tool_calls"] = nlohmann::ordered_json::array();
    for (const ToolCall& call : answer.calls) {
        message["tool_calls"].push_back(
            {{"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
    message["finish_reason"] = answer.finishReason;
    fmt::print("{}\n", message.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

int runTemplate(const TemplateOptions& options) {
    if (!options.family.empty() && !options.tokenizer.empty())
        throw ConfigError("template takes one of --tokenizer and --family");
    if (options.request.empty() == options.parse.empty())
        throw ConfigError("template needs one of --request and --parse");
    const ChatFormat format = chosenFormat(options);
    if (!options.parse.empty()) {
        printParsed(format, options);
        return 0;
    }
    ChatRequest request = readChatRequest(format, parseJson(readTextFile(options.request), options.request));
    if (!options.date.empty()) request.today = parseDate(options.date);
    const std::string prompt = renderChat(format, request).text();
    std::fwrite(prompt.data(), 1, prompt.size(), stdout);
    return 0;
}

}  // namespace dllama
