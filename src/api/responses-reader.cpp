#include <algorithm>

#include "api/api-error.hpp"
#include "api/request-parts.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

/// Collects the items of "input" as messages: a thought, a text and the calls behind it are one message of the
/// assistant.
class InputReader {
  public:
    InputReader(const ReaderOptions& options, std::vector<ChatMessage>& messages)
        : options_(options), messages_(messages) {}

    void add(const Fields& item) {
        const std::string type = item.text("type").value_or("message");
        if (type == "message")
            addMessage(item);
        else if (type == "function_call")
            addCall(item);
        else if (type == "function_call_output")
            addOutput(item);
        else if (type == "reasoning")
            addReasoning(item);
        else
            throw invalidRequest(item.pathOf("type"),
                                 "{} is {}, must be message, function_call, function_call_output or reasoning",
                                 item.pathOf("type"), shown(pythonText(type)));
    }

  private:
    std::string contentOf(const Fields& item, std::string_view key, std::string_view role) const {
        const PythonValue* content = item.find(key);
        if (!content) throw invalidRequest(item.pathOf(key), "{} is missing", item.pathOf(key));
        return readContent(*content, item.pathOf(key), role, {"input_text", "output_text", "text", "refusal"},
                           options_.format);
    }

    void addMessage(const Fields& item) {
        std::string role = readOneOf(item, "role", {"user", "assistant", "system", "developer"});
        if (role == "developer") role = "system";
        std::string content = contentOf(item, "content", role);
        if (role == "assistant" && openAssistant_ && messages_.back().content.empty() &&
            messages_.back().toolCalls.empty()) {
            messages_.back().content = std::move(content);
            return;
        }
        openAssistant_ = role == "assistant";
        messages_.push_back({std::move(role), std::move(content)});
    }

    ChatMessage& assistant() {
        if (!openAssistant_) messages_.push_back({"assistant", ""});
        openAssistant_ = true;
        return messages_.back();
    }

    void addCall(const Fields& item) {
        ToolCall call;
        call.name = item.requiredText("name");
        call.arguments = item.requiredText("arguments");
        call.id = item.requiredText("call_id");
        assistant().toolCalls.push_back(std::move(call));
    }

    void addOutput(const Fields& item) {
        ChatMessage message{"tool", contentOf(item, "output", "tool")};
        message.toolCallId = item.requiredText("call_id");
        messages_.push_back(std::move(message));
        openAssistant_ = false;
    }

    void addReasoning(const Fields& item) {
        std::string text;
        for (const char* key : {"content", "summary"}) {
            const std::optional<Items> parts = item.list(key);
            if (!parts || !text.empty()) continue;
            for (size_t i = 0; i < parts->size(); i++)
                text += Fields((*parts)[i], parts->pathOf(i)).text("text").value_or("");
        }
        // A thought without a text (encrypted_content is another server's) has nothing to say.
        if (text.empty()) return;
        openAssistant_ = false;
        assistant().reasoning = std::move(text);
    }

    const ReaderOptions& options_;
    std::vector<ChatMessage>& messages_;
    bool openAssistant_ = false;  // the last message is the assistant's and more items may join it
};

void readInput(const Fields& fields, const ReaderOptions& options, ChatRequest& chat) {
    if (const std::optional<std::string> instructions = fields.text("instructions"))
        chat.messages.push_back({"system", *instructions});
    const PythonValue* input = fields.find("input");
    if (!input) throw invalidRequest("input", "input is missing");
    if (input->isString()) {
        chat.messages.push_back({"user", input->text});
        return;
    }
    if (input->type != Type::List)
        throw invalidRequest("input", "input is {}, must be a text or a list", shown(*input));
    const Items items{"input", &input->items};
    if (items.size() == 0) throw invalidRequest("input", "input is empty, must hold at least one item");
    InputReader reader(options, chat.messages);
    for (size_t i = 0; i < items.size(); i++) reader.add(Fields(items[i], items.pathOf(i)));
}

/// Tools are flat here: {type: function, name, parameters}.
void readTools(const Fields& fields, ChatRequest& chat, ToolUse& use) {
    const std::optional<Items> tools = fields.list("tools");
    if (!tools) return;
    for (size_t i = 0; i < tools->size(); i++) {
        const Fields tool((*tools)[i], tools->pathOf(i));
        const std::string type = tool.requiredText("type");
        if (type != "function")
            throw invalidRequest(tool.pathOf("type"), "{} is {}: only functions are offered here", tool.pathOf("type"),
                                 shown(pythonText(type)));
        use.functions.push_back(readFunction(tool, "parameters"));
        chat.tools.push_back(openAiTool(tool, "parameters"));
    }
    checkFunctions(use.functions, *tools);
}

/// What would need something kept from an earlier request, or for a later one.
void refuseKeptState(const Fields& fields) {
    for (const char* key : {"previous_response_id", "conversation", "prompt"})
        if (fields.has(key)) throw invalidRequest(key, "{} is not supported: this server keeps no responses", key);
    if (fields.flag("background").value_or(false))
        throw invalidRequest("background", "background is not supported: this server keeps no responses");
}

void readLogprobs(const Fields& fields, GenerationRequest& request) {
    request.topLogprobs = static_cast<int>(fields.integer("top_logprobs", 0, 20).value_or(0));
    request.logprobs = request.topLogprobs > 0;
    const std::optional<Items> include = fields.list("include");
    for (size_t i = 0; include && i < include->size(); i++)
        if (textOf((*include)[i], include->pathOf(i)) == "message.output_text.logprobs") request.logprobs = true;
}

/// The answer's own copy of the request's fields.
std::string repeatedFields(const Fields& fields) {
    PythonValue null, yes, emptyList;
    yes.type = Type::Boolean;
    yes.boolean = true;
    emptyList.type = Type::List;
    const PythonValue plainText = pythonObject({{"format", pythonObject({{"type", pythonText("text")}})}});
    const std::pair<const char*, PythonValue> repeated[] = {{"instructions", null},
                                                            {"max_output_tokens", null},
                                                            {"metadata", pythonObject({})},
                                                            {"parallel_tool_calls", yes},
                                                            {"reasoning", null},
                                                            {"temperature", null},
                                                            {"text", plainText},
                                                            {"tool_choice", pythonText("auto")},
                                                            {"tools", emptyList},
                                                            {"top_p", null},
                                                            {"truncation", pythonText("disabled")},
                                                            {"user", null}};
    PythonValue result = pythonObject({});
    for (const auto& [key, preset] : repeated) {
        const PythonValue* given = fields.find(key);
        result.members.push_back({key, given ? *given : preset});
    }
    return toPythonJson(result);
}

}  // namespace

GenerationRequest readResponsesRequest(std::string_view text, const ReaderOptions& options) {
    const PythonValue body = parseBody(text);
    const Fields fields(body);
    GenerationRequest request;
    request.dialect = Dialect::Responses;
    request.model = fields.text("model").value_or("");
    refuseKeptState(fields);
    ChatRequest chat;
    readInput(fields, options, chat);
    readThinking(fields, chat, request);
    if (const std::optional<Fields> reasoning = fields.object("reasoning"); reasoning && reasoning->has("effort"))
        applyEffort(readEffort(*reasoning, "effort"), chat);
    readTools(fields, chat, request.tools);
    readToolChoice(fields, request.tools);
    if (const std::optional<Fields> output = fields.object("text"))
        if (const std::optional<Fields> format = output->object("format")) request.format = readFormat(*format, {});
    request.sampling = readSampling(fields, options);
    request.maxTokens = readTokenLimit(fields, "max_output_tokens");
    readLogprobs(fields, request);
    readStreaming(fields, request);
    request.repeatedFields = repeatedFields(fields);
    request.prompts.emplace_back(std::move(chat));
    return request;
}

}  // namespace dllama::api
