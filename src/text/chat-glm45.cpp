#include "text/chat-glm-parts.hpp"
#include "text/utf8.hpp"

/// The templates of GLM-4.5, 4.6, 4.5V and 4.7 (chat_template.jinja of their checkpoints).
namespace dllama::chat {
namespace {

constexpr std::string_view kNoThink = "/nothink";

/// GLM-4.5 writes a line feed wherever 4.7 writes nothing. 4.5V is 4.5 but for its generation prompt and a line feed
/// behind a tool's result.
struct Glm45Renderer {
    ChatFormat format;
    const ChatRequest& request;
    Writer writer;

    bool lines() const { return format != ChatFormat::Glm47; }
    std::string_view lineFeed() const { return lines() ? "\n" : ""; }
    bool thinkingOff() const { return request.enableThinking == false; }

    void writeTools() {
        const std::vector<PythonValue> tools = parseTools(request);
        if (tools.empty()) return;
        writer.marker("<|system|>").marker(kGlmToolsBegin);
        for (const PythonValue& tool : tools) writer.text(toPythonJson(tool)).marker("\n");
        writer.marker(kGlmToolsEnd);
        writer.marker(lines() ? "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}"
                                "</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n"
                                "...\n</tool_call>"
                              : kGlmCallOnOneLine);
    }

    void writeUser(const ChatMessage& message) {
        writer.marker("<|user|>").marker(lineFeed());
        std::string_view content = message.content;
        if (lines() && thinkingOff()) {
            // Asked for by the request, so it is the token even where the user has typed it already.
            if (content.ends_with(kNoThink)) content.remove_suffix(kNoThink.size());
            writer.text(content).marker(kNoThink);
        } else {
            writer.text(content);
        }
    }

    void writeAssistant(const ChatMessage& message, bool keepReasoning) {
        const SplitAnswer answer = splitAnswer(message);
        writer.marker("<|assistant|>").marker(lineFeed());
        if (keepReasoning && !answer.reasoning.empty()) {
            writer.marker("<think>").text(stripUnicode(answer.reasoning)).marker("</think>");
        } else {
            writer.marker(lines() ? "<think></think>" : "</think>");
        }
        const std::string_view content = stripUnicode(answer.content);
        if (!content.empty()) writer.marker(lineFeed()).text(content);
        for (const ToolCall& call : message.toolCalls) {
            writer.marker(lineFeed());
            writeGlmCall(call, lineFeed(), writer);
        }
    }

    void writeToolResult(const ChatMessage& message, bool first) {
        if (first) writer.marker("<|observation|>");
        writer.marker(lineFeed()).marker("<tool_response>").marker(lineFeed()).text(message.content);
        writer.marker(lineFeed()).marker("</tool_response>");
        if (format == ChatFormat::Glm45v) writer.marker("\n");
    }

    void writeGenerationPrompt() {
        writer.marker("<|assistant|>");
        if (format == ChatFormat::Glm47) {
            writer.marker(thinkingOff() ? "</think>" : "<think>");
            writer.result.endsInsideThink = !thinkingOff();
        } else if (format == ChatFormat::Glm45v) {
            writer.marker("\n");
            if (thinkingOff()) writer.marker("<think></think>").marker("\n");
        } else if (thinkingOff()) {
            writer.marker("\n").marker("<think></think>");
        }
    }

    RenderedChat render() {
        writer.marker("[gMASK]").marker("<sop>");
        writeTools();
        const auto lastUser = lastUserIndex(request);
        const bool keepAll = !lines() && request.clearThinking == false;
        for (size_t i = 0; i < request.messages.size(); i++) {
            const ChatMessage& message = request.messages[i];
            if (message.role == "user") {
                writeUser(message);
            } else if (message.role == "assistant") {
                writeAssistant(message, keepAll || !lastUser || i > *lastUser);
            } else if (message.role == "tool") {
                writeToolResult(message, i == 0 || !isTool(request, i - 1));
            } else {
                writer.marker("<|system|>").marker(lineFeed()).text(message.content);
            }
        }
        if (request.addGenerationPrompt) writeGenerationPrompt();
        return std::move(writer.result);
    }
};

}  // namespace

void writeGlmCall(const ToolCall& call, std::string_view lineFeed, Writer& writer) {
    writer.marker("<tool_call>").text(call.name).marker(lineFeed);
    const PythonValue arguments = parseArguments(call);
    for (const auto& [key, value] : arguments.members) {
        writer.marker("<arg_key>").text(key).marker("</arg_key>").marker(lineFeed).marker("<arg_value>");
        writer.text(value.isString() ? value.text : toPythonJson(value));
        writer.marker("</arg_value>").marker(lineFeed);
    }
    writer.marker("</tool_call>");
}

RenderedChat renderGlm45(ChatFormat format, const ChatRequest& request) {
    return Glm45Renderer{format, request, {}}.render();
}

}  // namespace dllama::chat
