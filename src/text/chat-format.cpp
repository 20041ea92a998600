#include "text/chat-format.hpp"

#include <algorithm>

#include "text/chat-writer.hpp"

namespace dllama {
namespace {

struct FormatName {
    std::string_view name;
    ChatFormat format;
};
constexpr FormatName kNames[] = {
    {"", ChatFormat::None},
    {"chatglm", ChatFormat::Chatglm},
    {"chatglm2", ChatFormat::Chatglm2},
    {"chatglm3", ChatFormat::Chatglm3},
    {"glm-4-9b-chat", ChatFormat::Glm49bChat},
    {"glm4-0414", ChatFormat::Glm40414},
    {"glm-z1", ChatFormat::GlmZ1},
    {"glm-4.5", ChatFormat::Glm45},
    {"glm-4.7", ChatFormat::Glm47},
    {"intellect-3", ChatFormat::Intellect3},
    {"llama2", ChatFormat::Llama2},
    {"llama3", ChatFormat::Llama3},
    {"llama3.1", ChatFormat::Llama31},
    {"chatml", ChatFormat::Chatml},
    {"qwen3", ChatFormat::Qwen3},
};

const FormatName* findName(std::string_view name) {
    const auto* found =
        std::find_if(std::begin(kNames), std::end(kNames), [&](const auto& n) { return n.name == name; });
    return found == std::end(kNames) ? nullptr : found;
}

/// The markers after which a model of the family has said what it had to say.
std::vector<std::string_view> stopMarkers(ChatFormat format) {
    switch (format) {
        case ChatFormat::None:
            return {};
        case ChatFormat::Chatglm:
            return {"<eop>"};
        case ChatFormat::Chatglm2:
            return {"</s>"};
        case ChatFormat::Chatglm3:
            return {"</s>", "<|user|>", "<|observation|>"};
        case ChatFormat::Glm49bChat:
        case ChatFormat::Glm40414:
        case ChatFormat::GlmZ1:
        case ChatFormat::Glm45:
        case ChatFormat::Glm47:
            return {"<|endoftext|>", "<|user|>", "<|observation|>"};
        case ChatFormat::Intellect3:
        case ChatFormat::Chatml:
        case ChatFormat::Qwen3:
            return {"<|im_end|>", "<|endoftext|>"};
        case ChatFormat::Llama2:
            return {"</s>"};
        case ChatFormat::Llama3:
            return {"<|eot_id|>", "<|end_of_text|>"};
        case ChatFormat::Llama31:
            return {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"};
    }
    return {};
}

void checkRequest(const ChatRequest& request) {
    if (request.messages.empty()) throw ConfigError("the list of messages is empty");
    constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
    for (const ChatMessage& message : request.messages) {
        if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
            throw ConfigError("unknown role \"{}\": a message is from system, user, assistant or tool", message.role);
        }
    }
}

}  // namespace

std::string RenderedChat::text() const {
    std::string all;
    for (const TextSegment& segment : segments) all += segment.text;
    return all;
}

ChatFormat chatFormatOf(const TokenizerFile& file) {
    const FormatName* found = findName(file.chatFormat);
    if (!found) throw FormatError("unknown chat format \"{}\"", file.chatFormat);
    const bool hasDates = file.chatTemplate.find("Cutting Knowledge Date") != std::string::npos;
    return found->format == ChatFormat::Llama3 && hasDates ? ChatFormat::Llama31 : found->format;
}

ChatFormat chatFormatByName(std::string_view name) {
    if (const FormatName* found = findName(name)) return found->format;
    std::string known;
    for (const FormatName& one : kNames) {
        if (!one.name.empty()) known += fmt::format("{}{}", known.empty() ? "" : ", ", one.name);
    }
    throw ConfigError("unknown chat format \"{}\", known are {}", name, known);
}

RenderedChat renderChat(ChatFormat format, const ChatRequest& request) {
    checkRequest(request);
    switch (format) {
        case ChatFormat::None: {
            chat::Writer writer;
            for (const ChatMessage& message : request.messages) writer.text(message.content);
            return writer.result;
        }
        case ChatFormat::Chatglm:
        case ChatFormat::Chatglm2:
        case ChatFormat::Chatglm3:
            return chat::renderChatglm(format, request);
        case ChatFormat::Glm49bChat:
        case ChatFormat::Glm40414:
        case ChatFormat::GlmZ1:
            return chat::renderGlm4(format, request);
        case ChatFormat::Glm45:
        case ChatFormat::Glm47:
            return chat::renderGlm45(format, request);
        case ChatFormat::Intellect3:
            return chat::renderIntellect3(request);
        case ChatFormat::Llama2:
        case ChatFormat::Llama3:
        case ChatFormat::Llama31:
            return chat::renderLlama(format, request);
        case ChatFormat::Chatml:
            return chat::renderChatml(request);
        case ChatFormat::Qwen3:
            return chat::renderQwen3(request);
    }
    throw ConfigError("no renderer for chat format {}", static_cast<int>(format));
}

std::string joinContentParts(ChatFormat format, std::string_view role, std::span<const std::string> parts) {
    const bool adjoin = (format == ChatFormat::Glm45 || format == ChatFormat::Glm47) && role != "tool";
    std::string joined;
    for (size_t i = 0; i < parts.size(); i++) {
        if (i > 0 && !adjoin) joined += '\n';
        joined += parts[i];
    }
    return joined;
}

ChatStops chatStops(ChatFormat format, const Tokenizer& tokenizer) {
    ChatStops stops;
    for (std::string_view marker : stopMarkers(format)) {
        if (const auto id = tokenizer.specialId(marker)) {
            stops.ids.push_back(*id);
        } else {
            stops.texts.emplace_back(marker);
        }
    }
    return stops;
}

bool answersBeginWithWhiteSpace(ChatFormat format) {
    switch (format) {
        case ChatFormat::Chatglm3:
        case ChatFormat::Glm49bChat:
        case ChatFormat::Glm40414:
        case ChatFormat::Glm45:
            return true;
        default:
            return false;
    }
}

namespace chat {

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

}  // namespace chat
}  // namespace dllama
