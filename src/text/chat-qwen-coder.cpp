#include <algorithm>
#include <initializer_list>

#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

/// Qwen3-Coder's template (in two wordings) and INTELLECT-3's, which is derived from it: see the notes of the reference
/// prompts.
namespace dllama::chat {
namespace {

void begin(std::string_view role, Writer& writer) {
    writer.marker("<|im_start|>").marker(role).marker("\n");
}
void end(Writer& writer) {
    writer.marker("<|im_end|>").marker("\n");
}

/// What the wordings of the tool list differ in. `called` is what the model is told it calls.
struct Wording {
    std::string_view system;  ///< the system text where tools come without one
    std::string_view called;
    std::string_view secondValue;
    std::string_view reminder;
};

constexpr std::string_view kNested =
    "an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags";

Wording wordingOf(ChatFormat format) {
    constexpr std::string_view kTwoLines = "This is the value for the second parameter\nthat can span\nmultiple lines";
    constexpr std::string_view kQwen =
        "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks.";
    if (format == ChatFormat::Qwen3CoderGguf) {
        return {kQwen, "tool", "value_2",
                "the tool calling block MUST begin with an opening <tool_call> tag and end with a closing </tool_call> "
                "tag."};
    }
    if (format == ChatFormat::Qwen3Coder) return {kQwen, "function", kTwoLines, kNested};
    return {
        "You are INTELLECT-3, a helpful assistant developed by Prime Intellect, that can interact with a computer "
        "to solve tasks.",
        "function", kTwoLines, kNested};
}

std::string callFormat(const Wording& wording) {
    return fmt::format(
        "\n\nIf you choose to call a {} ONLY reply in the following format with NO "
        "suffix:\n\n<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n"
        "</parameter>\n<parameter=example_parameter_2>\n{}\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"
        "Reminder:\n- Function calls MUST follow the specified format: {}\n- Required parameters MUST be specified\n"
        "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but "
        "NOT after\n- If there is no function call available, answer the question like normal with your current "
        "knowledge and do not tell the user about function calls\n</IMPORTANT>",
        wording.called, wording.secondValue, wording.reminder);
}

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

void writeTool(const PythonValue& tool, Writer& writer) {
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

void writeAssistant(const ChatMessage& message, bool thinks, Writer& writer) {
    writer.marker("<|im_start|>").marker("assistant");
    const std::string_view content = stripUnicode(message.content);
    const std::string_view reasoning =
        thinks && message.reasoning ? stripUnicode(*message.reasoning) : std::string_view();
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

RenderedChat renderQwenCoder(ChatFormat format, const ChatRequest& request) {
    const bool thinks = format == ChatFormat::Intellect3;
    const Wording wording = wordingOf(format);
    Writer writer;
    const std::vector<PythonValue> tools = parseTools(request);
    const bool hasSystem = request.messages[0].role == "system";
    if (hasSystem || !tools.empty()) {
        begin("system", writer);
        if (hasSystem) {
            writer.text(request.messages[0].content);
        } else {
            writer.marker(wording.system);
        }
        if (!tools.empty()) {
            writer.marker(
                fmt::format("\n\n# Tools\n\nYou have access to the following {}s:\n\n<tools>", wording.called));
            for (const PythonValue& tool : tools) writeTool(tool, writer);
            writer.marker("\n</tools>").marker(callFormat(wording));
        }
        end(writer);
    }
    const size_t first = hasSystem ? 1 : 0;
    for (size_t i = first; i < request.messages.size(); i++) {
        const ChatMessage& message = request.messages[i];
        if (message.role == "assistant") {
            writeAssistant(message, thinks, writer);
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
        if (thinks) writer.marker("<think>");
        writer.result.endsInsideThink = thinks;
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
