#include "text/chat-writer.hpp"

/// The template of Solar-Open-100B (chat_template.jinja of its checkpoint).
namespace dllama::chat {
namespace {

constexpr std::string_view kToolsBegin =
    "## Tools\n\n### Tool Call Instruction\nYou may invoke one or more tools to assist with the user's query. "
    "Available "
    "tools are provided in JSON Schema format: <|tools:begin|><|tool:begin|><tools-json-object><|tool:end|>..."
    "<|tools:end|>\n\n### Available Tools\n<|tools:begin|>";
constexpr std::string_view kToolsEnd =
    "<|tools:end|>\n\n### Tool Call Format\nFor each tool call, return a JSON object with the following structure, "
    "enclosed within <|tool_call:begin|> and <|tool_call:end|> tags: \n<|tool_call:begin|><tool-call-id>"
    "<|tool_call:name|><tool-name><|tool_call:args|><args-json-object><|tool_call:end|>\n- The <tool-call-id> must be "
    "a "
    "randomly generated string consisting of 10 lowercase letters (a-z) and/or digits (0-9) (e.g., a1b2c3d4e5)\n\n"
    "### Tool Response Format\nEach tool is responded by `tool` with the following structure:\n<|tool_response:id|>"
    "<tool-call-id><|tool_response:name|><tool-name><|tool_response:result|><results><|tool_response:end|>\n- Ensure "
    "the <tool-call-id> matches the corresponding tool call";

void begin(std::string_view role, std::string_view kind, Writer& writer) {
    writer.marker("<|begin|>").marker(role).marker(kind);
}

void writeSystem(const ChatRequest& request, Writer& writer) {
    std::string_view gap;  // between the parts
    const auto part = [&] {
        writer.marker(gap);
        gap = "\n\n";
    };
    const std::vector<PythonValue> tools = parseTools(request);
    std::vector<std::string_view> texts;
    for (const ChatMessage& message : request.messages) {
        if (message.role == "system") texts.push_back(message.content);
    }
    if (texts.empty() && tools.empty() && !request.defaultSystemPrompt) return;
    begin("system", "<|content|>", writer);
    if (request.defaultSystemPrompt) {
        part();
        const CalendarDate date = dateOf(request);
        writer.marker(
            fmt::format("## Provider System Prompt\n\nYou are Solar Open 100B, a large language model trained by "
                        "Upstage AI, a Korean startup. Your knowledge cutoff is 2025-07. The current date is "
                        "{:04}-{:02}-{:02}.",
                        date.year, date.month, date.day));
    }
    if (!texts.empty()) {
        part();
        writer.marker("## System Prompt");
        for (std::string_view text : texts) writer.marker("\n\n").text(text);
    }
    if (!tools.empty()) {
        part();
        writer.marker(kToolsBegin);
        for (const PythonValue& tool : tools) {
            writer.marker("<|tool:begin|>").text(toPythonJson(functionOf(tool))).marker("<|tool:end|>");
        }
        writer.marker(kToolsEnd);
    }
    writer.marker("<|end|>");
}

/// The name of the function that a result belongs to. Where ids repeat, the template writes all names.
std::string calledName(const ChatRequest& request, std::string_view id) {
    std::string names;
    for (const ChatMessage& message : request.messages) {
        for (const ToolCall& call : message.toolCalls) {
            if (call.id == id) names += call.name;
        }
    }
    return names;
}

void writeResult(const ChatRequest& request, size_t i, Writer& writer) {
    const ChatMessage& message = request.messages[i];
    if (i == 0 || !isTool(request, i - 1)) begin("tool", "<|tool_response|>", writer);
    writer.marker("<|tool_response:begin|>").text(message.toolCallId).marker("<|tool_response:name|>");
    writer.text(calledName(request, message.toolCallId)).marker("<|tool_response:result|>").text(message.content);
    writer.marker("<|tool_response:end|>");
    if (!isTool(request, i + 1)) writer.marker("<|end|>");
}

void writeAssistant(const ChatMessage& message, bool withThoughts, Writer& writer) {
    if (withThoughts && message.reasoning && !message.reasoning->empty()) {
        begin("assistant", "<|think|>", writer);
        writer.text(*message.reasoning).marker("<|end|>");
    }
    if (message.toolCalls.empty()) {
        begin("assistant", "<|content|>", writer);
        writer.text(message.content).marker("<|end|>");
        return;
    }
    begin("assistant", "<|tool_calls|>", writer);
    for (const ToolCall& call : message.toolCalls) {
        writer.marker("<|tool_call:begin|>").text(call.id).marker("<|tool_call:name|>").text(call.name);
        writer.marker("<|tool_call:args|>").text(toPythonJson(parseArguments(call))).marker("<|tool_call:end|>");
    }
    writer.marker("<|calls|>");
}

}  // namespace

RenderedChat renderSolar(ChatFormat, const ChatRequest& request) {
    Writer writer;
    writeSystem(request, writer);
    const auto lastUser = lastUserIndex(request);
    for (size_t i = 0; i < request.messages.size(); i++) {
        const ChatMessage& message = request.messages[i];
        if (message.role == "user") {
            begin("user", "<|content|>", writer);
            writer.text(message.content).marker("<|end|>");
        } else if (message.role == "tool") {
            writeResult(request, i, writer);
        } else if (message.role == "assistant") {
            const bool latest = request.thinkRenderOption == "lastthink" && (!lastUser || i > *lastUser);
            writeAssistant(message, latest || request.thinkRenderOption == "all", writer);
        }
    }
    if (request.addGenerationPrompt) {
        if (request.reasoningEffort == "low" || request.reasoningEffort == "minimal") {
            begin("assistant", "<|think|>", writer);
            writer.marker("<|end|>");
        }
        writer.marker("<|begin|>").marker("assistant");
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
