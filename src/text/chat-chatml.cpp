#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// Generic ChatML, Qwen3 and its releases of 2507 (chat_template in their tokenizer_config.json).
namespace dllama::chat {
namespace {

void begin(std::string_view role, Writer& writer) {
    writer.marker("<|im_start|>").marker(role).marker("\n");
}
void end(Writer& writer) {
    writer.marker("<|im_end|>").marker("\n");
}

void writeQwen3Tools(const std::vector<PythonValue>& tools, const ChatRequest& request, Writer& writer) {
    begin("system", writer);
    if (request.messages[0].role == "system") writer.text(request.messages[0].content).marker("\n\n");
    writer.marker(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
        "function signatures within <tools></tools> XML tags:\n<tools>");
    for (const PythonValue& tool : tools) writer.marker("\n").text(toPythonJson(tool));
    writer.marker(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": "
        "<args-json-object>}\n</tool_call>");
    end(writer);
}

/// The last message that a user wrote, tool results sent as user messages aside; the last of all if there is none.
size_t lastQuery(const ChatRequest& request) {
    for (size_t i = request.messages.size(); i-- > 0;) {
        const ChatMessage& message = request.messages[i];
        const std::string_view content = message.content;
        const bool result = content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
        if (message.role == "user" && !result) return i;
    }
    return request.messages.size() - 1;
}

void writeQwen3Assistant(const ChatMessage& message, bool thinks, bool isLast, bool afterQuery, Writer& writer) {
    const SplitAnswer answer = thinks ? splitAnswer(message) : SplitAnswer{"", message.content};
    begin("assistant", writer);
    if (thinks && afterQuery && (isLast || !answer.reasoning.empty())) {
        writer.marker("<think>").marker("\n");
        writer.text(stripLineFeedsLeft(stripLineFeedsRight(answer.reasoning)));
        writer.marker("\n").marker("</think>").marker("\n\n").text(stripLineFeedsLeft(answer.content));
    } else {
        writer.text(answer.content);
    }
    bool first = true;
    for (const ToolCall& call : message.toolCalls) {
        if (!first || !answer.content.empty()) writer.marker("\n");
        first = false;
        writer.marker("<tool_call>").marker("\n{\"name\": \"").text(call.name).marker("\", \"arguments\": ");
        writer.text(toPythonJson(parseArguments(call))).marker("}\n").marker("</tool_call>");
    }
    end(writer);
}

}  // namespace

RenderedChat renderChatml(ChatFormat format, const ChatRequest& request) {
    const bool closeAll = format == ChatFormat::ChatmlClosed;
    Writer writer;
    for (size_t i = 0; i < request.messages.size(); i++) {
        begin(request.messages[i].role, writer);
        writer.text(request.messages[i].content);
        if (closeAll || i + 1 < request.messages.size() || request.addGenerationPrompt) end(writer);
    }
    if (request.addGenerationPrompt && (closeAll || request.messages.back().role != "assistant"))
        begin("assistant", writer);
    return std::move(writer.result);
}

RenderedChat renderQwen3(ChatFormat format, const ChatRequest& request) {
    const bool thinks = format != ChatFormat::Qwen3Instruct2507;
    Writer writer;
    const std::vector<PythonValue> tools = parseTools(request);
    const auto& messages = request.messages;
    if (!tools.empty()) {
        writeQwen3Tools(tools, request, writer);
    } else if (messages[0].role == "system") {
        begin("system", writer);
        writer.text(messages[0].content);
        end(writer);
    }
    const size_t query = lastQuery(request);
    for (size_t i = 0; i < messages.size(); i++) {
        const ChatMessage& message = messages[i];
        if (message.role == "assistant") {
            writeQwen3Assistant(message, thinks, i + 1 == messages.size(), i > query, writer);
        } else if (message.role == "tool") {
            if (i == 0 || !isTool(request, i - 1)) writer.marker("<|im_start|>").marker("user");
            writer.marker("\n").marker("<tool_response>").marker("\n").text(message.content);
            writer.marker("\n").marker("</tool_response>");
            if (!isTool(request, i + 1)) end(writer);
        } else if (message.role == "user" || i > 0) {
            begin(message.role, writer);
            writer.text(message.content);
            end(writer);
        }
    }
    if (request.addGenerationPrompt) {
        begin("assistant", writer);
        if (format == ChatFormat::Qwen3Thinking2507) {
            writer.marker("<think>").marker("\n");
            writer.result.endsInsideThink = true;
        } else if (thinks && request.enableThinking == false) {
            writer.marker("<think>").marker("\n\n").marker("</think>").marker("\n\n");
        }
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
