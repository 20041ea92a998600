#include "text/chat-request.hpp"

#include "base/errors.hpp"

namespace dllama {
namespace {

using Type = PythonValue::Type;

/// A member that is there and not null.
const PythonValue* given(const PythonValue& object, std::string_view key) {
    const PythonValue* found = object.find(key);
    return found && found->type != Type::Null ? found : nullptr;
}

const std::string& textOf(const PythonValue& value, std::string_view what) {
    if (!value.isString()) throw ConfigError("{} is not a text", what);
    return value.text;
}

bool flagOf(const PythonValue& value, std::string_view what) {
    if (value.type != Type::Boolean) throw ConfigError("{} is not true or false", what);
    return value.boolean;
}

const std::vector<PythonValue>& listOf(const PythonValue& value, std::string_view what) {
    if (value.type != Type::List) throw ConfigError("{} is not a list", what);
    return value.items;
}

std::string contentOf(ChatFormat format, std::string_view role, const PythonValue& message, std::string_view what) {
    const PythonValue* content = given(message, "content");
    if (!content) return "";
    if (content->isString()) return content->text;
    std::vector<std::string> parts;
    for (const PythonValue& part : listOf(*content, fmt::format("the content of {}", what))) {
        if (part.isString()) {
            parts.push_back(part.text);
            continue;
        }
        const PythonValue* type = part.find("type");
        if (type && type->isString() && type->text != "text")
            throw ConfigError("a part of type {} in {}: only texts are understood here", type->text, what);
        const PythonValue* text = part.find("text");
        if (!text) throw ConfigError("a part of {} has no text", what);
        parts.push_back(textOf(*text, fmt::format("a part of {}", what)));
    }
    return joinContentParts(format, role, parts);
}

ToolCall callOf(const PythonValue& call, std::string_view what) {
    const PythonValue* function = given(call, "function");
    if (!function) throw ConfigError("a tool call of {} has no function", what);
    const PythonValue* name = given(*function, "name");
    if (!name) throw ConfigError("a tool call of {} has no name", what);
    ToolCall result;
    result.name = textOf(*name, "the name of a tool call");
    if (const PythonValue* arguments = given(*function, "arguments"))
        result.arguments = arguments->isString() ? arguments->text : toPythonJson(*arguments);
    if (const PythonValue* id = given(call, "id")) result.id = textOf(*id, "the id of a tool call");
    if (const PythonValue* type = given(call, "type")) result.type = textOf(*type, "the type of a tool call");
    return result;
}

ChatMessage messageOf(ChatFormat format, const PythonValue& message, size_t index) {
    const std::string what = fmt::format("message {}", index);
    if (!message.isObject()) throw ConfigError("{} is not a JSON object", what);
    const PythonValue* role = message.find("role");
    if (!role) throw ConfigError("{} has no role", what);
    ChatMessage result;
    result.role = textOf(*role, fmt::format("the role of {}", what));
    if (result.role == "developer") result.role = "system";
    result.content = contentOf(format, result.role, message, what);
    const PythonValue* reasoning = given(message, "reasoning_content");
    if (!reasoning) reasoning = given(message, "reasoning");
    if (reasoning) result.reasoning = textOf(*reasoning, fmt::format("the reasoning_content of {}", what));
    if (const PythonValue* calls = given(message, "tool_calls")) {
        for (const PythonValue& call : listOf(*calls, fmt::format("the tool_calls of {}", what)))
            result.toolCalls.push_back(callOf(call, what));
    }
    if (const PythonValue* id = given(message, "tool_call_id"))
        result.toolCallId = textOf(*id, fmt::format("the tool_call_id of {}", what));
    return result;
}

void readOptions(const PythonValue& options, ChatRequest& request) {
    if (!options.isObject()) throw ConfigError("chat_template_kwargs is not a JSON object");
    const auto text = [&](const char* key, std::string& out) {
        if (const PythonValue* value = given(options, key)) out = textOf(*value, key);
    };
    const auto flag = [&](const char* key, auto& out) {
        if (const PythonValue* value = given(options, key)) out = flagOf(*value, key);
    };
    flag("enable_thinking", request.enableThinking);
    flag("clear_thinking", request.clearThinking);
    text("reasoning_effort", request.reasoningEffort);
    flag("tools_in_user_message", request.toolsInUserMessage);
    text("date_string", request.dateString);
    flag("default_system_prompt", request.defaultSystemPrompt);
    text("think_render_option", request.thinkRenderOption);
    if (const PythonValue* builtin = given(options, "builtin_tools")) {
        for (const PythonValue& name : listOf(*builtin, "builtin_tools"))
            request.builtinTools.push_back(textOf(name, "an entry of builtin_tools"));
    }
}

}  // namespace

ChatRequest readChatRequest(ChatFormat format, const PythonValue& source) {
    if (!source.isObject()) throw ConfigError("the request is not a JSON object");
    ChatRequest request;
    const PythonValue* messages = source.find("messages");
    if (!messages) throw ConfigError("the request has no messages");
    const auto& list = listOf(*messages, "messages");
    for (size_t i = 0; i < list.size(); i++) request.messages.push_back(messageOf(format, list[i], i));
    if (const PythonValue* tools = given(source, "tools")) {
        for (const PythonValue& tool : listOf(*tools, "tools")) request.tools.push_back(toPythonJson(tool));
    }
    if (const PythonValue* add = given(source, "add_generation_prompt"))
        request.addGenerationPrompt = flagOf(*add, "add_generation_prompt");
    if (const PythonValue* think = given(source, "enable_thinking"))
        request.enableThinking = flagOf(*think, "enable_thinking");
    if (const PythonValue* effort = given(source, "reasoning_effort"))
        request.reasoningEffort = textOf(*effort, "reasoning_effort");
    if (const PythonValue* options = given(source, "chat_template_kwargs")) readOptions(*options, request);
    return request;
}

}  // namespace dllama
