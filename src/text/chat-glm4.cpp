#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// The templates of glm-4-9b-chat, GLM-4-0414, GLM-Z1 and GLM-Edge (chat_template in their tokenizer_config.json).
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

RenderedChat renderGlmEdge(ChatFormat, const ChatRequest& request) {
    Writer writer;
    for (const ChatMessage& message : request.messages) {
        if (message.role == "tool") continue;
        writer.marker("<|").marker(message.role).marker("|>").marker("\n").text(message.content);
    }
    writer.marker("<|assistant|>");
    return std::move(writer.result);
}

}  // namespace dllama::chat
