#include "text/chat-writer.hpp"

/// The template of DeepSeek-R1-Distill (chat_template in their tokenizer_config.json; one text for Llama and Qwen). Its
/// faults are kept: with one call the closing marks are missing, and only the first call and the first result of the
/// whole conversation open a block.
namespace dllama::chat {
namespace {

constexpr std::string_view kAssistant = "<｜Assistant｜>";
constexpr std::string_view kEnd = "<｜end▁of▁sentence｜>";

struct DeepseekRenderer {
    Writer writer;
    bool insideResults = false;
    bool hasCalled = false;
    bool hasResult = false;

    void writeCalls(const ChatMessage& message) {
        insideResults = false;
        for (const ToolCall& call : message.toolCalls) {
            const bool first = !hasCalled;
            if (first) {
                writer.marker(kAssistant).marker("<｜tool▁calls▁begin｜>");
            } else {
                writer.marker("\n");
            }
            hasCalled = true;
            writer.marker("<｜tool▁call▁begin｜>").text(call.type).marker("<｜tool▁sep｜>").text(call.name);
            writer.marker("\n```json\n").text(call.arguments).marker("\n```").marker("<｜tool▁call▁end｜>");
            if (!first) writer.marker("<｜tool▁calls▁end｜>").marker(kEnd);
        }
    }

    void writeAnswer(const ChatMessage& message) {
        constexpr std::string_view kClose = "</think>";
        std::string_view content = message.content;
        if (insideResults) {
            writer.marker("<｜tool▁outputs▁end｜>");
            insideResults = false;
        } else {
            if (const size_t end = content.rfind(kClose); end != std::string_view::npos)
                content.remove_prefix(end + kClose.size());
            writer.marker(kAssistant);
        }
        writer.text(content).marker(kEnd);
    }

    void writeResult(const ChatMessage& message) {
        insideResults = true;
        writer.marker(hasResult ? "\n" : "<｜tool▁outputs▁begin｜>");
        hasResult = true;
        writer.marker("<｜tool▁output▁begin｜>").text(message.content).marker("<｜tool▁output▁end｜>");
    }
};

}  // namespace

RenderedChat renderDeepseek(ChatFormat, const ChatRequest& request) {
    DeepseekRenderer renderer;
    Writer& writer = renderer.writer;
    writer.marker("<｜begin▁of▁sentence｜>");
    std::string_view system;
    for (const ChatMessage& message : request.messages) {
        if (message.role == "system") system = message.content;
    }
    writer.text(system);
    for (const ChatMessage& message : request.messages) {
        if (message.role == "user") {
            renderer.insideResults = false;
            writer.marker("<｜User｜>").text(message.content);
        } else if (message.role == "assistant") {
            if (message.content.empty() && !message.toolCalls.empty()) {
                renderer.writeCalls(message);
            } else {
                renderer.writeAnswer(message);
            }
        } else if (message.role == "tool") {
            renderer.writeResult(message);
        }
    }
    if (renderer.insideResults) {
        writer.marker("<｜tool▁outputs▁end｜>");
    } else if (request.addGenerationPrompt) {
        writer.marker(kAssistant).marker("<think>").marker("\n");
        writer.result.endsInsideThink = true;
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
