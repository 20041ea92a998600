#include <algorithm>

#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// Llama 2 (Meta's chat_completion), Llama 3, 3.1 and 3.2 (chat_template in their tokenizer_config.json).
namespace dllama::chat {
namespace {

void beginHeader(std::string_view role, Writer& writer) {
    writer.marker("<|start_header_id|>").marker(role).marker("<|end_header_id|>").marker("\n\n");
}

void end(Writer& writer) {
    writer.marker("<|eot_id|>");
}

/// What a call is told to look like, and how it is written, depends on the built-in tools that a request names.
bool usesBuiltin(const ChatRequest& request, std::string_view name) {
    const auto& builtin = request.builtinTools;
    return std::find(builtin.begin(), builtin.end(), name) != builtin.end();
}

/// strftime("%d %b %Y") in English.
std::string dateText(const CalendarDate& date) {
    constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    return fmt::format("{:02} {} {}", date.day, kMonths[std::clamp(date.month, 1, 12) - 1], date.year);
}

void writeToolList(const std::vector<PythonValue>& tools, Writer& writer) {
    writer.marker(
        "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}."
        "Do not use variables.\n\n");
    for (const PythonValue& tool : tools) writer.text(toPythonJson(tool, 4)).marker("\n\n");
}

/// Writes the system block and, with tools, the first user message. Returns the index of the next message.
size_t writeLlama31Start(ChatFormat format, const ChatRequest& request, Writer& writer) {
    const std::vector<PythonValue> tools = parseTools(request);
    size_t next = request.messages[0].role == "system" ? 1 : 0;
    beginHeader("system", writer);
    const bool hasBuiltin = format == ChatFormat::Llama31 && !request.builtinTools.empty();
    if (!tools.empty() || hasBuiltin) writer.marker("Environment: ipython\n");
    if (hasBuiltin) {
        writer.marker("Tools: ");
        bool first = true;
        for (const std::string& name : request.builtinTools) {
            if (name == "code_interpreter") continue;
            writer.marker(first ? "" : ", ").text(name);
            first = false;
        }
        writer.marker("\n\n");
    }
    std::string date = request.dateString;
    if (date.empty()) date = format == ChatFormat::Llama31 ? "26 Jul 2024" : dateText(dateOf(request));
    writer.marker("Cutting Knowledge Date: December 2023\nToday Date: ").text(date).marker("\n\n");
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

void writeBuiltinCall(const ToolCall& call, Writer& writer) {
    writer.marker("<|python_tag|>").text(call.name).marker(".call(");
    const PythonValue arguments = parseArguments(call);
    for (size_t i = 0; i < arguments.members.size(); i++) {
        const auto& [key, value] = arguments.members[i];
        if (!value.isString()) throw ConfigError("argument {} of the built-in tool {} is no text", key, call.name);
        writer.marker(i > 0 ? ", " : "").text(key).marker("=\"").text(value.text).marker("\"");
    }
    writer.marker(")");
}

void writeLlama31Message(ChatFormat format, const ChatRequest& request, const ChatMessage& message, Writer& writer) {
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
        const bool builtin = format == ChatFormat::Llama31;
        if (builtin && usesBuiltin(request, call.name)) {
            writeBuiltinCall(call, writer);
        } else {
            writer.marker("{\"name\": \"").text(call.name).marker("\", \"parameters\": ");
            writer.text(toPythonJson(parseArguments(call))).marker("}");
        }
        if (builtin && !request.builtinTools.empty()) {
            writer.marker("<|eom_id|>");
            return;
        }
    }
    end(writer);
}

}  // namespace

RenderedChat renderLlama2(ChatFormat, const ChatRequest& request) {
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

RenderedChat renderLlama3(ChatFormat format, const ChatRequest& request) {
    Writer writer;
    writer.marker("<|begin_of_text|>");
    if (format != ChatFormat::Llama3) {
        for (size_t i = writeLlama31Start(format, request, writer); i < request.messages.size(); i++) {
            writeLlama31Message(format, request, request.messages[i], writer);
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
