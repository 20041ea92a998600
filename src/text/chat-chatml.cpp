#include <algorithm>
#include <initializer_list>

#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// The families that write <|im_start|>: generic ChatML, Qwen3 (chat_template in its tokenizer_config.json) and
/// INTELLECT-3 (derived from Qwen3-Coder's template; see the notes of the reference prompts).
namespace dllama::chat {
namespace {

void begin(std::string_view role, Writer& writer) {
    writer.marker("<|im_start|>").marker(role).marker("\n");
}
void end(Writer& writer) {
    writer.marker("<|im_end|>").marker("\n");
}

// --- Qwen3 ----------------------------------------------------------------------------------------------------------

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

void writeQwen3Assistant(const ChatMessage& message, bool isLast, bool afterQuery, Writer& writer) {
    const SplitAnswer answer = splitAnswer(message);
    begin("assistant", writer);
    if (afterQuery && (isLast || !answer.reasoning.empty())) {
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

// --- INTELLECT-3 ----------------------------------------------------------------------------------------------------

constexpr std::string_view kIntellectCallFormat =
    "\n\nIf you choose to call a function ONLY reply in the following format with NO "
    "suffix:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified "
    "format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags\n- "
    "Required parameters MUST be specified\n- You may provide optional reasoning for your function call in natural "
    "language BEFORE the function call, but NOT after\n- If there is no function call available, answer the question "
    "like normal with your current knowledge and do not tell the user about function calls\n</IMPORTANT>";

void writeElement(std::string_view name, std::string_view value, Writer& writer) {
    writer.marker("\n<").text(name).marker(">").text(value).marker("</").text(name).marker(">");
}

std::string jsonOrText(const PythonValue& value) {
    return value.isContainer() ? toPythonJson(value) : toPythonText(value);
}

void writeOtherKeys(const PythonValue& object, std::initializer_list<std::string_view> handled, Writer& writer) {
    for (const auto& [key, value] : object.members) {
        if (std::find(handled.begin(), handled.end(), key) == handled.end())
            writeElement(key, jsonOrText(value), writer);
    }
}

void writeDescription(const PythonValue& object, Writer& writer) {
    if (const PythonValue* text = object.find("description")) {
        writeElement("description", stripUnicode(toPythonText(*text)), writer);
    }
}

void writeIntellectTool(const PythonValue& tool, Writer& writer) {
    const PythonValue& function = functionOf(tool);
    writer.marker("\n<function>");
    const PythonValue* name = function.find("name");
    writeElement("name", name ? toPythonText(*name) : "", writer);
    writeDescription(function, writer);
    writer.marker("\n<parameters>");
    if (const PythonValue* parameters = function.find("parameters")) {
        const PythonValue* properties = parameters->find("properties");
        if (properties) {
            for (const auto& [key, fields] : properties->members) {
                writer.marker("\n<parameter>");
                writeElement("name", key, writer);
                if (const PythonValue* type = fields.find("type")) writeElement("type", toPythonText(*type), writer);
                writeDescription(fields, writer);
                writeOtherKeys(fields, {"name", "type", "description"}, writer);
                writer.marker("\n</parameter>");
            }
        }
        writeOtherKeys(*parameters, {"type", "properties"}, writer);
    }
    writer.marker("\n</parameters>");
    writeOtherKeys(function, {"type", "name", "description", "parameters"}, writer);
    writer.marker("\n</function>");
}

void writeIntellectAssistant(const ChatMessage& message, Writer& writer) {
    writer.marker("<|im_start|>").marker("assistant");
    const std::string_view content = stripUnicode(message.content);
    const std::string_view reasoning = message.reasoning ? stripUnicode(*message.reasoning) : std::string_view();
    if (!reasoning.empty()) writer.marker("\n").marker("<think>").text(reasoning).marker("</think>");
    if (message.toolCalls.empty()) {
        if (reasoning.empty()) {
            writer.marker("\n").text(message.content);
        } else if (!content.empty()) {
            writer.marker("\n").text(content);
        }
    } else if (!content.empty()) {
        writer.marker("\n").text(content).marker("\n");
    }
    for (const ToolCall& call : message.toolCalls) {
        writer.marker("\n").marker("<tool_call>").marker("\n<function=").text(call.name).marker(">\n");
        const PythonValue arguments = parseArguments(call);
        for (const auto& [key, value] : arguments.members) {
            writer.marker("<parameter=").text(key).marker(">\n").text(jsonOrText(value)).marker("\n</parameter>\n");
        }
        writer.marker("</function>\n").marker("</tool_call>");
    }
    end(writer);
}

}  // namespace

RenderedChat renderChatml(const ChatRequest& request) {
    Writer writer;
    for (size_t i = 0; i < request.messages.size(); i++) {
        begin(request.messages[i].role, writer);
        writer.text(request.messages[i].content);
        if (i + 1 < request.messages.size() || request.addGenerationPrompt) end(writer);
    }
    if (request.addGenerationPrompt && request.messages.back().role != "assistant") begin("assistant", writer);
    return std::move(writer.result);
}

RenderedChat renderQwen3(const ChatRequest& request) {
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
            writeQwen3Assistant(message, i + 1 == messages.size(), i > query, writer);
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
        if (request.enableThinking == false) writer.marker("<think>").marker("\n\n").marker("</think>").marker("\n\n");
    }
    return std::move(writer.result);
}

RenderedChat renderIntellect3(const ChatRequest& request) {
    Writer writer;
    const std::vector<PythonValue> tools = parseTools(request);
    const bool hasSystem = request.messages[0].role == "system";
    if (hasSystem || !tools.empty()) {
        begin("system", writer);
        if (hasSystem) {
            writer.text(request.messages[0].content);
        } else {
            writer.marker(
                "You are INTELLECT-3, a helpful assistant developed by Prime Intellect, that can interact with a "
                "computer to solve tasks.");
        }
        if (!tools.empty()) {
            writer.marker("\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>");
            for (const PythonValue& tool : tools) writeIntellectTool(tool, writer);
            writer.marker("\n</tools>").marker(kIntellectCallFormat);
        }
        end(writer);
    }
    const size_t first = hasSystem ? 1 : 0;
    for (size_t i = first; i < request.messages.size(); i++) {
        const ChatMessage& message = request.messages[i];
        if (message.role == "assistant") {
            writeIntellectAssistant(message, writer);
        } else if (message.role == "tool") {
            // A conversation that begins with a result has no opening in the template.
            if (i > first && !isTool(request, i - 1)) begin("user", writer);
            writer.marker("<tool_response>").marker("\n").text(message.content);
            writer.marker("\n").marker("</tool_response>").marker("\n");
            if (!isTool(request, i + 1)) end(writer);
        } else {
            begin(message.role, writer);
            writer.text(message.content);
            end(writer);
        }
    }
    if (request.addGenerationPrompt) {
        begin("assistant", writer);
        writer.marker("<think>");
        writer.result.endsInsideThink = true;
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
