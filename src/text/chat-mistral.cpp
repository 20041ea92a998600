#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// The templates of Mistral-7B-Instruct v0.1, v0.2 (an older and the present text) and v0.3.
namespace dllama::chat {
namespace {

constexpr const char* kAfterSystem =
    "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...";
constexpr const char* kOnlyAfterSystem =
    "Only user and assistant roles are supported, with the exception of an initial optional system message!";

void writeTools(const std::vector<PythonValue>& tools, Writer& writer) {
    writer.marker("[AVAILABLE_TOOLS] [");
    for (size_t i = 0; i < tools.size(); i++) {
        if (i > 0) writer.marker(", ");
        writer.marker("{\"type\": \"function\", \"function\": {");
        bool first = true;
        for (const auto& [key, value] : functionOf(tools[i]).members) {
            if (key == "return") continue;
            if (!first) writer.marker(", ");
            first = false;
            // The template puts quotes around a text and does not escape it.
            writer.text("\"" + key + "\": " + (value.isString() ? "\"" + value.text + "\"" : toPythonJson(value)));
        }
        writer.marker("}}");
    }
    writer.marker("]").marker("[/AVAILABLE_TOOLS]");
}

void checkId(std::string_view id) {
    size_t nCharacters = 0;
    for (; !id.empty(); nCharacters++) id.remove_prefix(utf8Step(id).length);
    if (nCharacters != 9) throw ConfigError("Tool call IDs should be alphanumeric strings with length 9!");
}

void writeCalls(const std::vector<ToolCall>& calls, Writer& writer) {
    writer.marker("[TOOL_CALLS] [");
    for (size_t i = 0; i < calls.size(); i++) {
        checkId(calls[i].id);
        if (i > 0) writer.marker(", ");
        PythonValue name;
        name.type = PythonValue::Type::String;
        name.text = calls[i].name;
        writer.marker("{\"name\": ").text(toPythonJson(name)).marker(", \"arguments\": ");
        writer.text(toPythonJson(parseArguments(calls[i]))).marker(", \"id\": \"").text(calls[i].id).marker("\"}");
    }
    writer.marker("]").marker("</s>");
}

}  // namespace

RenderedChat renderMistralV1(ChatFormat format, const ChatRequest& request) {
    const bool old = format == ChatFormat::MistralV1Old;
    const auto& messages = request.messages;
    const size_t begin = !old && messages[0].role == "system" ? 1 : 0;
    Writer writer;
    writer.marker("<s>");
    for (size_t i = begin; i < messages.size(); i++) {
        const ChatMessage& message = messages[i];
        if ((message.role == "user") != ((i - begin) % 2 == 0))
            throw ConfigError(
                "{}", old ? "Conversation roles must alternate user/assistant/user/assistant/..." : kAfterSystem);
        if (message.role == "user") {
            writer.marker(old ? "" : " ").marker("[INST]").marker(" ");
            if (i == begin && begin == 1) writer.text(messages[0].content).marker("\n\n");
            writer.text(message.content).marker(" ").marker("[/INST]");
        } else if (message.role == "assistant") {
            writer.marker(old ? "" : " ").text(message.content).marker("</s>");
        } else {
            throw ConfigError("{}", old ? "Only user and assistant roles are supported!" : kOnlyAfterSystem);
        }
    }
    return std::move(writer.result);
}

RenderedChat renderMistralV3(ChatFormat, const ChatRequest& request) {
    const auto& messages = request.messages;
    const size_t begin = messages[0].role == "system" ? 1 : 0;
    size_t n = 0;
    for (size_t i = begin; i < messages.size(); i++) {
        if (messages[i].role == "tool" || !messages[i].toolCalls.empty()) continue;
        if ((messages[i].role == "user") != (n++ % 2 == 0)) throw ConfigError("{}", kAfterSystem);
    }
    const std::vector<PythonValue> tools = parseTools(request);
    const auto lastUser = lastUserIndex(request);
    Writer writer;
    writer.marker("<s>");
    for (size_t i = begin; i < messages.size(); i++) {
        const ChatMessage& message = messages[i];
        if (message.role == "user") {
            // The template compares messages, not places: an earlier one with the same words has the tools too.
            if (!tools.empty() && message.content == messages[*lastUser].content) writeTools(tools, writer);
            writer.marker("[INST]").marker(" ");
            if (begin == 1 && i + 1 == messages.size()) writer.text(messages[0].content).marker("\n\n");
            writer.text(message.content).marker("[/INST]");
        } else if (!message.toolCalls.empty()) {
            writeCalls(message.toolCalls, writer);
        } else if (message.role == "assistant") {
            writer.marker(" ").text(stripUnicode(message.content)).marker("</s>");
        } else if (message.role == "tool") {
            checkId(message.toolCallId);
            writer.marker("[TOOL_RESULTS]").marker(" {\"content\": ").text(message.content);
            writer.marker(", \"call_id\": \"").text(message.toolCallId).marker("\"}").marker("[/TOOL_RESULTS]");
        } else {
            throw ConfigError("{}", kOnlyAfterSystem);
        }
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
