#include "api/api-error.hpp"
#include "api/request-parts.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

void refuseBlock(const Fields& block, const std::string& type, std::string_view role) {
    throw invalidRequest(block.pathOf("type"), "{} is {}, which a message of the {} cannot have here",
                         block.pathOf("type"), shown(pythonText(type)), role);
}

/// Text blocks become a message of the user, tool_result blocks messages of the tool, in their order.
void addUserBlocks(const Items& blocks, ChatFormat format, std::vector<ChatMessage>& messages) {
    std::vector<std::string> texts;
    const auto flush = [&] {
        if (!texts.empty()) messages.push_back({"user", joinContentParts(format, "user", texts)});
        texts.clear();
    };
    for (size_t i = 0; i < blocks.size(); i++) {
        const Fields block(blocks[i], blocks.pathOf(i));
        const std::string type = block.requiredText("type");
        if (type == "text") {
            texts.push_back(block.requiredText("text"));
        } else if (type == "tool_result") {
            flush();
            ChatMessage message{"tool", ""};
            message.toolCallId = block.requiredText("tool_use_id");
            block.flag("is_error");
            if (const PythonValue* content = block.find("content"))
                message.content = readContent(*content, block.pathOf("content"), "tool", {"text"}, format);
            messages.push_back(std::move(message));
        } else {
            refuseBlock(block, type, "user");
        }
    }
    flush();
}

ChatMessage readAssistantBlocks(const Items& blocks, ChatFormat format) {
    ChatMessage message{"assistant", ""};
    std::vector<std::string> texts;
    for (size_t i = 0; i < blocks.size(); i++) {
        const Fields block(blocks[i], blocks.pathOf(i));
        const std::string type = block.requiredText("type");
        if (type == "text") {
            texts.push_back(block.requiredText("text"));
        } else if (type == "thinking") {
            message.reasoning = message.reasoning.value_or("") + block.requiredText("thinking");
        } else if (type == "tool_use") {
            ToolCall call;
            call.name = block.requiredText("name");
            call.id = block.requiredText("id");
            call.arguments = block.object("input") ? toPythonJson(*block.find("input")) : "{}";
            message.toolCalls.push_back(std::move(call));
        } else if (type != "redacted_thinking") {
            refuseBlock(block, type, "assistant");
        }
    }
    message.content = joinContentParts(format, "assistant", texts);
    return message;
}

void readMessages(const Fields& fields, ChatFormat format, ChatRequest& chat) {
    if (const PythonValue* system = fields.find("system"))
        chat.messages.push_back({"system", readContent(*system, "system", "system", {"text"}, format)});
    const Items messages = fields.requiredList("messages");
    if (messages.size() == 0) throw invalidRequest("messages", "messages is empty, must hold at least one message");
    for (size_t i = 0; i < messages.size(); i++) {
        const Fields message(messages[i], messages.pathOf(i));
        const std::string role = readOneOf(message, "role", {"user", "assistant"});
        const PythonValue* content = message.find("content");
        if (!content) throw invalidRequest(message.pathOf("content"), "{} is missing", message.pathOf("content"));
        if (content->isString()) {
            chat.messages.push_back({role, content->text});
            continue;
        }
        const Items blocks = *message.list("content");
        if (role == "user")
            addUserBlocks(blocks, format, chat.messages);
        else
            chat.messages.push_back(readAssistantBlocks(blocks, format));
    }
}

/// A last message of the assistant is the beginning of the answer.
void takeAnswerBegin(ChatRequest& chat, GenerationRequest& request) {
    if (chat.messages.size() < 2 || chat.messages.back().role != "assistant" || !chat.messages.back().toolCalls.empty())
        return;
    request.answerBegin = std::move(chat.messages.back().content);
    chat.messages.pop_back();
}

void readTools(const Fields& fields, ChatRequest& chat, ToolUse& use) {
    const std::optional<Items> tools = fields.list("tools");
    if (!tools) return;
    for (size_t i = 0; i < tools->size(); i++) {
        const Fields tool((*tools)[i], tools->pathOf(i));
        const std::string type = tool.text("type").value_or("custom");
        if (type != "custom")
            throw invalidRequest(tool.pathOf("type"), "{} is {}: only the client's own tools are offered here",
                                 tool.pathOf("type"), shown(pythonText(type)));
        use.functions.push_back(readFunction(tool, "input_schema"));
        chat.tools.push_back(openAiTool(tool, "input_schema"));
    }
    checkFunctions(use.functions, *tools);
}

void readAnthropicChoice(const Fields& fields, ToolUse& use) {
    const std::optional<Fields> choice = fields.object("tool_choice");
    if (!choice) return;
    use.parallel = !choice->flag("disable_parallel_tool_use").value_or(false);
    const std::string type = readOneOf(*choice, "type", {"auto", "any", "tool", "none"});
    if (type == "any") requireCall("tool_choice", use);
    if (type == "tool") chooseFunction(choice->requiredText("name"), "tool_choice", use);
    if (type == "none") use.choice = ToolUse::Choice::None;
}

void readOutputConfig(const Fields& fields, ChatRequest& chat, GenerationRequest& request) {
    // What output_config.format is called in an older beta.
    if (const std::optional<Fields> format = fields.object("output_format")) request.format = readFormat(*format, {});
    const std::optional<Fields> config = fields.object("output_config");
    if (!config) return;
    if (config->has("effort")) applyEffort(readEffort(*config, "effort"), chat);
    if (const std::optional<Fields> format = config->object("format")) request.format = readFormat(*format, {});
}

GenerationRequest readBody(std::string_view text, const ReaderOptions& options, bool answers) {
    const PythonValue body = parseBody(text);
    const Fields fields(body);
    GenerationRequest request;
    request.dialect = Dialect::Messages;
    request.model = fields.requiredText("model");
    ChatRequest chat;
    readMessages(fields, options.format, chat);
    readThinking(fields, chat, request);
    readTools(fields, chat, request.tools);
    readAnthropicChoice(fields, request.tools);
    readOutputConfig(fields, chat, request);
    if (!chat.enableThinking) chat.enableThinking = false;
    takeAnswerBegin(chat, request);
    request.maxTokens = readTokenLimit(fields, "max_tokens");
    if (answers && !request.maxTokens) throw invalidRequest("max_tokens", "max_tokens is missing");
    request.sampling = readSampling(fields, options);
    request.stop = readStops(fields, "stop_sequences");
    readStreaming(fields, request);
    request.prompts.emplace_back(std::move(chat));
    return request;
}

}  // namespace

GenerationRequest readMessagesRequest(std::string_view text, const ReaderOptions& options) {
    return readBody(text, options, true);
}

GenerationRequest readCountTokens(std::string_view text, const ReaderOptions& options) {
    return readBody(text, options, false);
}

}  // namespace dllama::api
