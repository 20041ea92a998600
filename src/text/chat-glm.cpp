#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// The templates of glm-4-9b-chat, GLM-4-0414, GLM-Z1 (chat_template in their tokenizer_config.json) and of GLM-4.5 to
/// 4.7 (their chat_template.jinja).
namespace dllama::chat {
namespace {

constexpr std::string_view kToolUse = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。";

std::string nameOf(const PythonValue& function) {
    const PythonValue* name = function.find("name");
    return name ? toPythonText(*name) : "";
}

void writeGlm4Tools(ChatFormat format, const std::vector<PythonValue>& tools, Writer& writer) {
    const bool first = format == ChatFormat::Glm49bChat;
    writer.marker("<|system|>");
    writer.marker(first ? "\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
                          "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
                        : "\n# 可用工具\n");
    for (const PythonValue& tool : tools) {
        const PythonValue* type = tool.find("type");
        if (first && (!type || type->text != "function")) continue;
        const PythonValue& function = functionOf(tool);
        writer.marker("\n## ").text(nameOf(function)).marker("\n\n").text(toPythonJson(function, 4)).marker(kToolUse);
    }
}

void writeGlm4Message(ChatFormat format, const ChatMessage& message, Writer& writer) {
    // 9b-chat leaves out a message without content, marker and all.
    const bool skipEmpty = format == ChatFormat::Glm49bChat;
    const auto write = [&](std::string_view marker, std::string_view metadata, std::string_view content) {
        if (skipEmpty && content.empty()) return;
        writer.marker(marker).text(metadata).marker("\n").text(content);
    };
    if (message.role == "system") return write("<|system|>", "", message.content);
    if (message.role == "user") return write("<|user|>", "", message.content);
    if (message.role == "tool") return write("<|observation|>", "", message.content);
    std::string_view content = message.content;
    if (format == ChatFormat::GlmZ1) {
        constexpr std::string_view kClose = "</think>";
        const size_t end = content.rfind(kClose);
        if (end != std::string_view::npos) content = stripUnicode(content.substr(end + kClose.size()));
    }
    if (message.toolCalls.empty() || !content.empty()) write("<|assistant|>", "", content);
    for (const ToolCall& call : message.toolCalls) write("<|assistant|>", call.name, call.arguments);
}

// --- GLM-4.5 and 4.7 ------------------------------------------------------------------------------------------------

constexpr std::string_view kToolsBegin =
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n";
constexpr std::string_view kToolsEnd =
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n";
constexpr std::string_view kNoThink = "/nothink";

/// GLM-4.5 writes a line feed wherever 4.7 writes nothing.
struct Glm45Renderer {
    ChatFormat format;
    const ChatRequest& request;
    Writer writer;

    bool lines() const { return format == ChatFormat::Glm45; }
    std::string_view lineFeed() const { return lines() ? "\n" : ""; }
    bool thinkingOff() const { return request.enableThinking == false; }

    void writeTools() {
        const std::vector<PythonValue> tools = parseTools(request);
        if (tools.empty()) return;
        writer.marker("<|system|>").marker(kToolsBegin);
        for (const PythonValue& tool : tools) writer.text(toPythonJson(tool)).marker("\n");
        writer.marker(kToolsEnd);
        writer.marker(lines() ? "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}"
                                "</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n"
                                "...\n</tool_call>"
                              : "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}"
                                "</arg_value><arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>..."
                                "</tool_call>");
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
            writer.marker(lineFeed()).marker("<tool_call>").text(call.name).marker(lineFeed());
            const PythonValue arguments = parseArguments(call);
            for (const auto& [key, value] : arguments.members) {
                writer.marker("<arg_key>").text(key).marker("</arg_key>").marker(lineFeed()).marker("<arg_value>");
                writer.text(value.isString() ? value.text : toPythonJson(value));
                writer.marker("</arg_value>").marker(lineFeed());
            }
            writer.marker("</tool_call>");
        }
    }

    void writeToolResult(const ChatMessage& message, bool first) {
        if (first) writer.marker("<|observation|>");
        writer.marker(lineFeed()).marker("<tool_response>").marker(lineFeed()).text(message.content);
        writer.marker(lineFeed()).marker("</tool_response>");
    }

    RenderedChat render() {
        writer.marker("[gMASK]").marker("<sop>");
        writeTools();
        size_t lastUser = 0;
        bool hasUser = false;
        for (size_t i = 0; i < request.messages.size(); i++) {
            if (request.messages[i].role != "user") continue;
            lastUser = i;
            hasUser = true;
        }
        const bool keepAll = !lines() && !request.clearThinking;
        for (size_t i = 0; i < request.messages.size(); i++) {
            const ChatMessage& message = request.messages[i];
            if (message.role == "user") {
                writeUser(message);
            } else if (message.role == "assistant") {
                writeAssistant(message, keepAll || !hasUser || i > lastUser);
            } else if (message.role == "tool") {
                writeToolResult(message, i == 0 || !isTool(request, i - 1));
            } else {
                writer.marker("<|system|>").marker(lineFeed()).text(message.content);
            }
        }
        if (request.addGenerationPrompt) {
            writer.marker("<|assistant|>");
            if (lines()) {
                if (thinkingOff()) writer.marker("\n").marker("<think></think>");
            } else {
                writer.marker(thinkingOff() ? "</think>" : "<think>");
                writer.result.endsInsideThink = !thinkingOff();
            }
        }
        return std::move(writer.result);
    }
};

}  // namespace

RenderedChat renderGlm4(ChatFormat format, const ChatRequest& request) {
    Writer writer;
    writer.marker("[gMASK]").marker("<sop>");
    const std::vector<PythonValue> tools = parseTools(request);
    if (!tools.empty()) writeGlm4Tools(format, tools, writer);
    // 0414 and Z1 put all system messages first.
    const bool systemFirst = format != ChatFormat::Glm49bChat;
    for (const ChatMessage& message : request.messages) {
        if (systemFirst && message.role == "system") writeGlm4Message(format, message, writer);
    }
    for (const ChatMessage& message : request.messages) {
        if (!systemFirst || message.role != "system") writeGlm4Message(format, message, writer);
    }
    if (request.addGenerationPrompt) {
        writer.marker("<|assistant|>");
        if (format == ChatFormat::GlmZ1) {
            writer.marker("\n").marker("<think>");
            writer.result.endsInsideThink = true;
        }
    }
    return std::move(writer.result);
}

RenderedChat renderGlm45(ChatFormat format, const ChatRequest& request) {
    return Glm45Renderer{format, request, {}}.render();
}

}  // namespace dllama::chat
