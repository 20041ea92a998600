#include "text/chat-calls.hpp"

#include <algorithm>
#include <optional>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama::chat {
namespace {

using Kind = CallRead::Kind;
using std::string_view;

constexpr string_view kOpen = "<tool_call>";
constexpr string_view kClose = "</tool_call>";
constexpr string_view kFunction = "<function=";
constexpr string_view kFunctionEnd = "</function>";
constexpr string_view kSpaces = " \t\r\n";

string_view skipSpaces(string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
    return text;
}

bool take(string_view& text, string_view start) {
    if (!text.starts_with(start)) return false;
    text.remove_prefix(start.size());
    return true;
}

/// The text before `end`, which is taken away with it. Nothing if there is no `end`.
std::optional<string_view> takeUntil(string_view& text, string_view end) {
    const size_t at = text.find(end);
    if (at == string_view::npos) return std::nullopt;
    const string_view before = text.substr(0, at);
    text.remove_prefix(at + end.size());
    return before;
}

void setMember(PythonValue& object, string_view name, PythonValue value) {
    for (PythonValue::Member& member : object.members) {
        if (member.name != name) continue;
        member.value = std::move(value);
        return;
    }
    object.members.push_back({std::string(name), std::move(value)});
}

PythonValue emptyObject() {
    PythonValue object;
    object.type = PythonValue::Type::Object;
    return object;
}

// --- GLM-4.5 and later ----------------------------------------------------------------------------------------------

/// What stands between <tool_call> and </tool_call>.
std::optional<ParsedCall> readGlmBlock(string_view inside, const std::vector<PythonValue>& tools) {
    inside = skipSpaces(inside);
    const size_t nameEnd = std::min({inside.find('\n'), inside.find("<arg_key>"), inside.size()});
    const string_view name = stripUnicode(inside.substr(0, nameEnd));
    if (!isFunctionName(name)) return std::nullopt;
    PythonValue arguments = emptyObject();
    for (string_view rest = skipSpaces(inside.substr(nameEnd)); !rest.empty(); rest = skipSpaces(rest)) {
        if (!take(rest, "<arg_key>")) return std::nullopt;
        const auto key = takeUntil(rest, "</arg_key>");
        if (!key) return std::nullopt;
        rest = skipSpaces(rest);
        if (!take(rest, "<arg_value>")) return std::nullopt;
        const auto value = takeUntil(rest, "</arg_value>");
        if (!value || value->find("<arg_key>") != string_view::npos || value->find("<arg_value>") != string_view::npos)
            return std::nullopt;
        const string_view trimmed = stripUnicode(*key);
        if (trimmed.empty() || trimmed.find('<') != string_view::npos) return std::nullopt;
        setMember(arguments, trimmed, glmArgument(tools, name, trimmed, *value));
    }
    return ParsedCall{std::string(name), toPythonJson(arguments)};
}

CallRead readGlm(string_view text, bool atEnd, const std::vector<PythonValue>& tools) {
    const size_t end = text.find(kClose);
    if (end == string_view::npos) return {atEnd ? Kind::Text : Kind::More, text.size()};
    const size_t length = end + kClose.size();
    const auto call = readGlmBlock(text.substr(kOpen.size(), end - kOpen.size()), tools);
    return call ? CallRead{Kind::Calls, length, {*call}} : CallRead{Kind::Text, length};
}

// --- Qwen3-Coder and INTELLECT-3 ------------------------------------------------------------------------------------

/// <function=NAME>, parameters and </function>, which may be missing.
std::optional<ParsedCall> readQwenFunction(string_view text, const std::vector<PythonValue>& tools) {
    text = skipSpaces(text);
    if (!take(text, kFunction)) return std::nullopt;
    const auto written = takeUntil(text, ">");
    const string_view name = written ? stripUnicode(*written) : string_view();
    if (!isFunctionName(name)) return std::nullopt;
    PythonValue arguments = emptyObject();
    for (text = skipSpaces(text); !text.empty(); text = skipSpaces(text)) {
        if (take(text, kFunctionEnd)) {
            if (!skipSpaces(text).empty()) return std::nullopt;
            break;
        }
        if (!take(text, "<parameter=")) return std::nullopt;
        const auto key = takeUntil(text, ">");
        const string_view parameter = key ? stripUnicode(*key) : string_view();
        if (parameter.empty() || parameter.find('<') != string_view::npos) return std::nullopt;
        const size_t close = text.find("</parameter>");
        const size_t end = std::min({close, text.find("<parameter="), text.find(kFunctionEnd), text.size()});
        string_view value = text.substr(0, end);
        text.remove_prefix(end);
        take(text, "</parameter>");
        if (value.starts_with('\n')) value.remove_prefix(1);
        if (value.ends_with('\n')) value.remove_suffix(1);
        setMember(arguments, parameter, qwenArgument(tools, name, parameter, value));
    }
    return ParsedCall{std::string(name), toPythonJson(arguments)};
}

CallRead readQwen(string_view text, bool atEnd, const std::vector<PythonValue>& tools) {
    const auto whole = [&](string_view inside, size_t length) {
        const auto call = readQwenFunction(inside, tools);
        return call ? CallRead{Kind::Calls, length, {*call}} : CallRead{Kind::Text, length};
    };
    if (text.starts_with(kFunction)) {
        const size_t end = text.find(kFunctionEnd);
        const size_t block = text.find(kOpen);
        if (block < end) return {Kind::Text, block};
        if (end != string_view::npos)
            return whole(text.substr(0, end + kFunctionEnd.size()), end + kFunctionEnd.size());
        return {atEnd ? Kind::Text : Kind::More, text.size()};
    }
    const size_t end = text.find(kClose);
    if (end != string_view::npos) return whole(text.substr(kOpen.size(), end - kOpen.size()), end + kClose.size());
    if (!atEnd) return {};
    const string_view trimmed = text.substr(0, text.find_last_not_of(kSpaces) + 1);
    if (!trimmed.ends_with(kFunctionEnd)) return {Kind::Text, text.size()};
    return whole(trimmed.substr(kOpen.size()), text.size());
}

// --- JSON -----------------------------------------------------------------------------------------------------------

CallRead readHermes(string_view text, bool atEnd) {
    const auto malformed = [&]() -> CallRead {
        const size_t end = text.find(kClose);
        if (end == string_view::npos) return {atEnd ? Kind::Text : Kind::More, text.size()};
        return {Kind::Text, end + kClose.size()};
    };
    string_view rest = skipSpaces(text.substr(kOpen.size()));
    if (rest.empty()) return atEnd ? malformed() : CallRead{};
    if (rest[0] != '{') return malformed();
    const JsonScan scan = scanJson(rest);
    if (scan.kind == JsonScan::Kind::More && !atEnd) return {};
    PythonValue object;
    ParsedCall call;
    if (scan.kind != JsonScan::Kind::Whole || !parseObject(rest.substr(0, scan.length), object) ||
        !callOfObject(object, call))
        return malformed();
    rest = skipSpaces(rest.substr(scan.length));
    if (take(rest, kClose)) return {Kind::Calls, text.size() - rest.size(), {call}};
    if (rest.empty() && atEnd) return {Kind::Calls, text.size(), {call}};
    return kClose.starts_with(rest) && !atEnd ? CallRead{} : malformed();
}

constexpr string_view kDeepseekCalls = "<｜tool▁calls▁begin｜>";
constexpr string_view kDeepseekCallsEnd = "<｜tool▁calls▁end｜>";
constexpr string_view kDeepseekCall = "<｜tool▁call▁begin｜>";
constexpr string_view kDeepseekCallEnd = "<｜tool▁call▁end｜>";

std::optional<ParsedCall> readDeepseekBlock(string_view inside) {
    const auto before = takeUntil(inside, "<｜tool▁sep｜>");
    if (!before) return std::nullopt;
    string_view name = stripUnicode(*before);
    string_view json = stripUnicode(inside);
    if (!json.starts_with('{')) {
        // TYPE, separator, NAME, and the object in a fence that may be missing.
        const size_t end = std::min({json.find('\n'), json.find("```"), json.find('{')});
        if (end == string_view::npos) return std::nullopt;
        name = stripUnicode(json.substr(0, end));
        json = skipSpaces(json.substr(end));
    }
    if (take(json, "```")) {
        take(json, "json");
        json = stripUnicode(json);
        if (json.ends_with("```")) json.remove_suffix(3);
    }
    json = stripUnicode(json);
    PythonValue object;
    if (!isFunctionName(name) || !parseObject(json, object)) return std::nullopt;
    return ParsedCall{std::string(name), toPythonJson(object)};
}

CallRead readDeepseek(string_view text, bool atEnd) {
    for (string_view mark : {kDeepseekCalls, kDeepseekCallsEnd}) {
        if (text.starts_with(mark)) return {Kind::Skip, mark.size()};
    }
    const size_t end = text.find(kDeepseekCallEnd);
    if (end == string_view::npos) return {atEnd ? Kind::Text : Kind::More, text.size()};
    const size_t length = end + kDeepseekCallEnd.size();
    const auto call = readDeepseekBlock(text.substr(kDeepseekCall.size(), end - kDeepseekCall.size()));
    return call ? CallRead{Kind::Calls, length, {*call}} : CallRead{Kind::Text, length};
}

constexpr string_view kMistralCalls = "[TOOL_CALLS]";

CallRead readMistral(string_view text, bool atEnd) {
    const string_view rest = skipSpaces(text.substr(kMistralCalls.size()));
    if (rest.empty() && !atEnd) return {};
    const JsonScan scan = rest.starts_with('[') ? scanJson(rest) : JsonScan{JsonScan::Kind::Faulty, 0};
    if (scan.kind == JsonScan::Kind::More && !atEnd) return {};
    if (scan.kind != JsonScan::Kind::Whole) return {Kind::Text, kMistralCalls.size()};
    CallRead read{Kind::Calls, text.size() - rest.size() + scan.length};
    PythonValue list;
    try {
        list = parseJson(rest.substr(0, scan.length), "calls");
    } catch (const ConfigError&) {
        return {Kind::Text, read.length};
    }
    for (const PythonValue& object : list.items) {
        ParsedCall call;
        if (!object.isObject() || !callOfObject(object, call)) return {Kind::Text, read.length};
        read.calls.push_back(std::move(call));
    }
    return read;
}

constexpr string_view kSolarCall = "<|tool_call:begin|>";
constexpr string_view kSolarCallEnd = "<|tool_call:end|>";
/// What surrounds the parts of Solar's answers.
constexpr string_view kSolarSkipped[] = {"<|begin|>assistant", "<|tool_calls|>", "<|calls|>", "<|content|>", "<|end|>"};

CallRead readSolar(string_view text, bool atEnd) {
    for (string_view mark : kSolarSkipped) {
        if (text.starts_with(mark)) return {Kind::Skip, mark.size()};
    }
    const size_t end = text.find(kSolarCallEnd);
    if (end == string_view::npos) return {atEnd ? Kind::Text : Kind::More, text.size()};
    const size_t length = end + kSolarCallEnd.size();
    string_view inside = text.substr(kSolarCall.size(), end - kSolarCall.size());
    PythonValue object;
    if (!takeUntil(inside, "<|tool_call:name|>")) return {Kind::Text, length};
    const auto name = takeUntil(inside, "<|tool_call:args|>");
    if (!name || !isFunctionName(stripUnicode(*name)) || !parseObject(stripUnicode(inside), object))
        return {Kind::Text, length};
    return {Kind::Calls, length, {{std::string(stripUnicode(*name)), toPythonJson(object)}}};
}

}  // namespace

std::vector<string_view> callMarks(CallStyle style) {
    switch (style) {
        case CallStyle::GlmTags:
        case CallStyle::Hermes:
            return {kOpen};
        case CallStyle::QwenTags:
            return {kOpen, kFunction};
        case CallStyle::Deepseek:
            return {kDeepseekCall, kDeepseekCalls, kDeepseekCallsEnd};
        case CallStyle::Mistral:
            return {kMistralCalls};
        case CallStyle::Solar: {
            std::vector<string_view> marks(std::begin(kSolarSkipped), std::end(kSolarSkipped));
            marks.push_back(kSolarCall);
            return marks;
        }
        default:
            return {};
    }
}

CallRead readCall(CallStyle style, string_view text, bool atEnd, const std::vector<PythonValue>& tools) {
    switch (style) {
        case CallStyle::GlmTags:
            return readGlm(text, atEnd, tools);
        case CallStyle::QwenTags:
            return readQwen(text, atEnd, tools);
        case CallStyle::Hermes:
            return readHermes(text, atEnd);
        case CallStyle::Deepseek:
            return readDeepseek(text, atEnd);
        case CallStyle::Mistral:
            return readMistral(text, atEnd);
        case CallStyle::Solar:
            return readSolar(text, atEnd);
        default:
            return {Kind::Text, text.size()};
    }
}

bool isFunctionName(string_view name) {
    return !name.empty() && name.find_first_of("<>{}\"' \t\r\n\v\f") == string_view::npos;
}

JsonScan scanJson(string_view text) {
    int depth = 0;
    bool inString = false;
    for (size_t i = 0; i < text.size(); i++) {
        const char c = text[i];
        if (inString) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                inString = false;
            }
            continue;
        }
        if (c == '"') {
            inString = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (--depth == 0) return {JsonScan::Kind::Whole, i + 1};
        } else if (kSpaces.find(c) == string_view::npos && string_view(",:+-.").find(c) == string_view::npos &&
                   !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z')) {
            return {JsonScan::Kind::Faulty, i};
        }
    }
    return {};
}

bool parseObject(string_view text, PythonValue& object) {
    try {
        object = parseJson(text, "a call");
    } catch (const ConfigError&) {
        return false;
    }
    return object.isObject();
}

bool callOfObject(const PythonValue& object, ParsedCall& call) {
    const PythonValue* name = object.find("name");
    if (!name || !name->isString() || !isFunctionName(name->text)) return false;
    const PythonValue* arguments = object.find("arguments");
    if (!arguments) arguments = object.find("parameters");
    PythonValue parsed = emptyObject();
    if (arguments && arguments->isObject()) {
        parsed = *arguments;
    } else if (arguments && arguments->isString()) {
        if (!parseObject(arguments->text, parsed)) return false;
    } else if (arguments && arguments->type != PythonValue::Type::Null) {
        return false;
    }
    call = {name->text, toPythonJson(parsed)};
    return true;
}

}  // namespace dllama::chat
