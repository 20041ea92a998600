#include <charconv>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "text/chat-format.hpp"
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

}  // namespace

int runTemplate(const TemplateOptions& options) {
    if (!options.family.empty() && !options.tokenizer.empty())
        throw ConfigError("template takes one of --tokenizer and --family");
    if (options.request.empty()) throw ConfigError("template needs --request");
    const ChatFormat format = chosenFormat(options);
    ChatRequest request = readChatRequest(format, parseJson(readTextFile(options.request), options.request));
    if (!options.date.empty()) request.today = parseDate(options.date);
    const std::string prompt = renderChat(format, request).text();
    std::fwrite(prompt.data(), 1, prompt.size(), stdout);
    return 0;
}

}  // namespace dllama
