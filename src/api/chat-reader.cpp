#include <algorithm>

#include "api/api-error.hpp"
#include "api/request-parts.hpp"
#include "text/chat-request.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

void checkContent(const PythonValue& content, const std::string& path) {
    if (content.isString()) return;
    if (content.type != Type::List)
        throw invalidRequest(path, "{} is {}, must be a text or a list of parts", path, shown(content));
    const Items parts{path, &content.items};
    for (size_t i = 0; i < parts.size(); i++) {
        if (parts[i].isString()) continue;
        const std::string type = Fields(parts[i], parts.pathOf(i)).text("type").value_or("text");
        if (type != "text")
            throw invalidRequest(parts.pathOf(i), "{} is of type {}: the model reads texts only", parts.pathOf(i),
                                 shown(pythonText(type)));
    }
}

/// Roles and parts; `message` is changed to what the text layer knows.
void checkMessage(PythonValue& message, const std::string& path) {
    const Fields fields(message, path);
    const std::string role = fields.requiredText("role");
    static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles))
        throw invalidRequest(fields.pathOf("role"), "{} is {}, must be one of system, developer, user, assistant, tool",
                             fields.pathOf("role"), shown(pythonText(role)));
    if (const PythonValue* content = fields.find("content")) checkContent(*content, fields.pathOf("content"));
    if (role != "assistant" && !fields.has("content"))
        throw invalidRequest(fields.pathOf("content"), "{} is missing", fields.pathOf("content"));
    // What "tool" was called before there were several calls.
    for (PythonValue::Member& member : message.members)
        if (member.name == "role" && role == "function") member.value.text = "tool";
}

ChatRequest readMessages(PythonValue& body, const ReaderOptions& options) {
    const Items messages = Fields(body).requiredList("messages");
    if (messages.size() == 0) throw invalidRequest("messages", "messages is empty, must hold at least one message");
    for (PythonValue::Member& member : body.members) {
        if (member.name != "messages") continue;
        for (size_t i = 0; i < member.value.items.size(); i++) checkMessage(member.value.items[i], messages.pathOf(i));
        try {
            return readChatRequest(options.format, pythonObject({std::move(member)}));
        } catch (const ConfigError& error) {
            throw invalidRequest("messages", "messages: {}", error.what());
        }
    }
    return {};
}

void readTools(const Fields& fields, ChatRequest& chat, ToolUse& use) {
    const std::optional<Items> tools = fields.list("tools");
    if (!tools) return;
    for (size_t i = 0; i < tools->size(); i++) {
        const Fields tool((*tools)[i], tools->pathOf(i));
        const std::string type = tool.text("type").value_or("function");
        if (type != "function")
            throw invalidRequest(tool.pathOf("type"), "{} is {}: only functions are offered here", tool.pathOf("type"),
                                 shown(pythonText(type)));
        const std::optional<Fields> function = tool.object("function");
        if (!function) throw invalidRequest(tool.pathOf("function"), "{} is missing", tool.pathOf("function"));
        use.functions.push_back(readFunction(*function, "parameters"));
        chat.tools.push_back(toPythonJson((*tools)[i]));
    }
    checkFunctions(use.functions, *tools);
}

}  // namespace

GenerationRequest readChatCompletion(std::string_view text, const ReaderOptions& options) {
    PythonValue body = parseBody(text);
    GenerationRequest request;
    request.dialect = Dialect::Chat;
    ChatRequest chat = readMessages(body, options);
    const Fields fields(body);
    for (const char* key : {"functions", "function_call"})
        if (fields.has(key)) throw invalidRequest(key, "{} is not known any more: use tools and tool_choice", key);
    request.model = fields.text("model").value_or("");
    readThinking(fields, chat, request);
    readTools(fields, chat, request.tools);
    readToolChoice(fields, request.tools);
    if (const std::optional<Fields> format = fields.object("response_format"))
        request.format = readFormat(*format, format->object("json_schema"));

    request.sampling = readSampling(fields, options);
    request.n = readChoices(fields, 1, options);
    request.maxTokens = readTokenLimit(fields, "max_completion_tokens");
    const std::optional<int> olderName = readTokenLimit(fields, "max_tokens");
    if (!request.maxTokens) request.maxTokens = olderName;
    request.minTokens = static_cast<int>(fields.integer("min_tokens", 0, 1 << 30).value_or(0));
    request.ignoreEos = fields.flag("ignore_eos").value_or(false);
    request.stop = readStops(fields, "stop");
    request.logprobs = fields.flag("logprobs").value_or(false);
    request.topLogprobs = static_cast<int>(fields.integer("top_logprobs", 0, 20).value_or(0));
    if (request.topLogprobs > 0 && !request.logprobs)
        throw invalidRequest("top_logprobs", "top_logprobs is {}, which needs logprobs to be true",
                             request.topLogprobs);
    readStreaming(fields, request);
    request.prompts.emplace_back(std::move(chat));
    return request;
}

}  // namespace dllama::api
