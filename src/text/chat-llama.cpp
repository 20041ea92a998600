#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// Llama 2 (Meta's chat_completion), Llama 3 and Llama 3.1 (chat_template in their tokenizer_config.json).
namespace dllama::chat {
namespace {

void beginHeader(std::string_view role, Writer& writer) {
    writer.marker("<|start_header_id|>").marker(role).marker("<|end_header_id|>").marker("\n\n");
}

void end(Writer& writer) {
    writer.marker("<|eot_id|>");
}

RenderedChat renderLlama2(const ChatRequest& request) {
    Writer writer;
    std::string system;
    for (const ChatMessage& message : request.messages) {
        const std::string_view content = stripUnicode(message.content);
        if (message.role == "system") {
            system = content;
        } else if (message.role == "user") {
            writer.marker("<s>").marker("[INST] ");
            if (!system.empty()) writer.marker("<<SYS>>\n").text(system).marker("\n<</SYS>>\n\n");
            writer.text(content).marker(" [/INST]");
            system.clear();
        } else if (message.role == "assistant") {
            writer.marker(" ").text(content).marker(" ").marker("</s>");
        } else {
            throw ConfigError("this model knows no messages of role {}", message.role);
        }
    }
    return std::move(writer.result);
}

void writeToolList(const std::vector<PythonValue>& tools, Writer& writer) {
    writer.marker(
        "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}."
        "Do not use variables.\n\n");
    for (const PythonValue& tool : tools) writer.text(toPythonJson(tool, 4)).marker("\n\n");
}

/// Writes the system block and, with tools, the first user message. Returns the index of the next message.
size_t writeLlama31Start(const ChatRequest& request, Writer& writer) {
    const std::vector<PythonValue> tools = parseTools(request);
    size_t next = request.messages[0].role == "system" ? 1 : 0;
    beginHeader("system", writer);
    if (!tools.empty()) writer.marker("Environment: ipython\n");
    writer.marker("Cutting Knowledge Date: December 2023\nToday Date: ").text(request.dateString).marker("\n\n");
    if (!tools.empty() && !request.toolsInUserMessage) {
        writer.marker(
            "You have access to the following functions. To call a function, please respond with JSON for a function "
            "call.");
        writeToolList(tools, writer);
    }
    if (next == 1) writer.text(stripUnicode(request.messages[0].content));
    end(writer);
    if (tools.empty() || !request.toolsInUserMessage) return next;
    if (next == request.messages.size()) {
        throw ConfigError("Cannot put tools in the first user message when there's no first user message!");
    }
    beginHeader("user", writer);
    writer.marker(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        "best answers the given prompt.\n\n");
    writeToolList(tools, writer);
    writer.text(stripUnicode(request.messages[next].content));
    end(writer);
    return next + 1;
}

void writeLlama31Message(const ChatMessage& message, Writer& writer) {
    if (message.role == "tool") {
        beginHeader("ipython", writer);
        PythonValue content;
        content.type = PythonValue::Type::String;
        content.text = message.content;
        writer.text(toPythonJson(content));
    } else if (message.toolCalls.empty()) {
        beginHeader(message.role, writer);
        writer.text(stripUnicode(message.content));
    } else {
        if (message.toolCalls.size() != 1) throw ConfigError("This model only supports single tool-calls at once!");
        const ToolCall& call = message.toolCalls[0];
        beginHeader("assistant", writer);
        writer.marker("{\"name\": \"").text(call.name).marker("\", \"parameters\": ");
        writer.text(toPythonJson(parseArguments(call))).marker("}");
    }
    end(writer);
}

}  // namespace

RenderedChat renderLlama(ChatFormat format, const ChatRequest& request) {
    if (format == ChatFormat::Llama2) return renderLlama2(request);
    Writer writer;
    writer.marker("<|begin_of_text|>");
    if (format == ChatFormat::Llama31) {
        for (size_t i = writeLlama31Start(request, writer); i < request.messages.size(); i++) {
            writeLlama31Message(request.messages[i], writer);
        }
    } else {
        for (const ChatMessage& message : request.messages) {
            beginHeader(message.role, writer);
            writer.text(stripUnicode(message.content));
            end(writer);
        }
    }
    if (request.addGenerationPrompt) beginHeader("assistant", writer);
    return std::move(writer.result);
}

}  // namespace dllama::chat
