#include "api/request-parts.hpp"

#include <algorithm>
#include <charconv>
#include <limits>
#include <unordered_set>

#include "api/api-error.hpp"
#include "text/chat-calls.hpp"
#include "text/chat-request.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

constexpr int kMostInt = std::numeric_limits<int>::max();
constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = 4096;
constexpr size_t kMaxFunctions = 1024;
constexpr size_t kMaxNameBytes = 256;

std::vector<std::pair<int, float>> readLogitBias(const Fields& fields, int vocabSize) {
    std::vector<std::pair<int, float>> result;
    const PythonValue* bias = fields.find("logit_bias");
    if (!bias) return result;
    if (!bias->isObject()) throw invalidRequest("logit_bias", "logit_bias is {}, must be an object", shown(*bias));
    for (const auto& [key, value] : bias->members) {
        int id = 0;
        const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        if (error != std::errc() || stop != key.data() + key.size() || id < 0 || id >= vocabSize)
            throw invalidRequest("logit_bias", "logit_bias has the key {}, must be a token id from 0 to {}",
                                 shown(pythonText(key)), vocabSize - 1);
        result.emplace_back(id, static_cast<float>(numberOf(value, "logit_bias." + key, -100.0, 100.0)));
    }
    return result;
}

/// "none", "auto", "required".
void chooseByWord(const std::string& word, std::string_view path, ToolUse& tools) {
    if (word == "none")
        tools.choice = ToolUse::Choice::None;
    else if (word == "required")
        requireCall(path, tools);
    else if (word != "auto")
        throw invalidRequest(std::string(path), "{} is {}, must be none, auto, required or an object", path,
                             shown(pythonText(word)));
}

/// {type: allowed_tools, allowed_tools: {mode, tools: [{type, function: {name}}]}}: a part of the tools may be called.
void readAllowedTools(const Fields& choice, ToolUse& use) {
    const Fields allowed = choice.object("allowed_tools").value_or(choice);
    const Items tools = allowed.requiredList("tools");
    std::vector<FunctionTool> kept;
    for (size_t i = 0; i < tools.size(); i++) {
        const Fields tool(tools[i], tools.pathOf(i));
        const std::string name = tool.object("function").value_or(tool).requiredText("name");
        const auto found = std::find_if(use.functions.begin(), use.functions.end(),
                                        [&](const FunctionTool& function) { return function.name == name; });
        if (found == use.functions.end())
            throw invalidRequest(tool.pathOf("name"), "{} names the function {}, which is not among the tools",
                                 tools.pathOf(i), shown(pythonText(name)));
        kept.push_back(*found);
    }
    use.functions = std::move(kept);
    chooseByWord(allowed.text("mode").value_or("auto"), allowed.pathOf("mode"), use);
}

}  // namespace

SamplingFields readSampling(const Fields& fields, const ReaderOptions& options) {
    SamplingFields result;
    const auto real = [&](std::string_view key, double low, double high) -> std::optional<float> {
        const std::optional<double> value = fields.number(key, low, high);
        return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
    };
    result.temperature = real("temperature", 0.0, 2.0);
    result.topP = real("top_p", 0.0, 1.0);
    if (result.topP) *result.topP = std::max(*result.topP, 1e-6f);
    result.minP = real("min_p", 0.0, 1.0);
    // -1 is vLLM's way to say that it is off.
    if (const auto topK = fields.integer("top_k", -1, kMostInt))
        result.topK = static_cast<int>(std::max(*topK, int64_t{0}));
    result.repetitionPenalty = real("repetition_penalty", 0.01, 100.0);
    const std::optional<float> llamaName = real("repeat_penalty", 0.01, 100.0);
    if (!result.repetitionPenalty) result.repetitionPenalty = llamaName;
    // llama.cpp's clients say -1 where they do not mind.
    const auto seed = fields.integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max());
    if (seed && *seed != -1) result.seed = static_cast<uint64_t>(*seed);
    result.presencePenalty = real("presence_penalty", -2.0, 2.0).value_or(0.0f);
    result.frequencyPenalty = real("frequency_penalty", -2.0, 2.0).value_or(0.0f);
    result.logitBias = readLogitBias(fields, options.vocabSize);
    return result;
}

std::vector<std::string> readStops(const Fields& fields, std::string_view key) {
    std::vector<std::string> result;
    const PythonValue* value = fields.find(key);
    if (!value) return result;
    const auto add = [&](const PythonValue& stop, const std::string& path) {
        const std::string& text = textOf(stop, path);
        if (text.size() > kMaxStopBytes)
            throw invalidRequest(path, "{} has {} bytes, must be at most {}", path, text.size(), kMaxStopBytes);
        if (!text.empty()) result.push_back(text);
    };
    if (value->isString()) {
        add(*value, fields.pathOf(key));
        return result;
    }
    if (value->type != Type::List)
        throw invalidRequest(fields.pathOf(key), "{} is {}, must be a text or a list of texts", fields.pathOf(key),
                             shown(*value));
    const Items items = *fields.list(key);
    if (items.size() > kMaxStops)
        throw invalidRequest(items.path, "{} has {} entries, must be at most {}", items.path, items.size(), kMaxStops);
    for (size_t i = 0; i < items.size(); i++) add(items[i], items.pathOf(i));
    return result;
}

std::optional<int> readTokenLimit(const Fields& fields, std::string_view key) {
    const std::optional<int64_t> value = fields.integer(key, 1, kMostInt);
    return value ? std::optional(static_cast<int>(*value)) : std::nullopt;
}

int readChoices(const Fields& fields, size_t nPrompts, const ReaderOptions& options) {
    const int n = static_cast<int>(fields.integer("n", 1, options.maxChoices).value_or(1));
    if (nPrompts * static_cast<size_t>(n) > static_cast<size_t>(options.maxChoices))
        throw invalidRequest(nPrompts > 1 ? "prompt" : "n", "{} prompts times n {} are more than {} choices", nPrompts,
                             n, options.maxChoices);
    return n;
}

void readStreaming(const Fields& fields, GenerationRequest& request) {
    request.stream = fields.flag("stream").value_or(false);
    if (const std::optional<Fields> options = fields.object("stream_options"))
        request.includeUsage = options->flag("include_usage").value_or(false);
}

std::string readOneOf(const Fields& fields, std::string_view key, std::initializer_list<std::string_view> values) {
    const std::string text = fields.requiredText(key);
    std::string all;
    for (std::string_view value : values) {
        if (text == value) return text;
        all += (all.empty() ? "" : ", ") + std::string(value);
    }
    throw invalidRequest(fields.pathOf(key), "{} is {}, must be one of {}", fields.pathOf(key), shown(pythonText(text)),
                         all);
}

std::string readEffort(const Fields& fields, std::string_view key) {
    return readOneOf(fields, key, {"none", "minimal", "low", "medium", "high", "xhigh", "max"});
}

void applyEffort(const std::string& effort, ChatRequest& chat) {
    if (chat.reasoningEffort.empty()) chat.reasoningEffort = effort;
    if (effort == "none" && !chat.enableThinking) chat.enableThinking = false;
}

void readThinking(const Fields& fields, ChatRequest& chat, GenerationRequest& request) {
    if (const PythonValue* options = fields.find("chat_template_kwargs")) {
        const std::vector<ChatMessage> messages = std::move(chat.messages);
        try {
            PythonValue none;
            none.type = Type::List;
            chat = readChatRequest(ChatFormat::None,
                                   pythonObject({{"messages", std::move(none)}, {"chat_template_kwargs", *options}}));
        } catch (const ConfigError& error) {
            throw invalidRequest("chat_template_kwargs", "chat_template_kwargs: {}", error.what());
        }
        chat.messages = messages;
    }
    const std::optional<bool> enable = fields.flag("enable_thinking");
    if (!chat.enableThinking) chat.enableThinking = enable;
    if (const std::optional<Fields> thinking = fields.object("thinking")) {
        const std::string type = readOneOf(*thinking, "type", {"enabled", "disabled", "adaptive"});
        if (!chat.enableThinking) chat.enableThinking = type != "disabled";
        request.reasoningBudget = readTokenLimit(*thinking, "budget_tokens");
    }
    if (fields.has("reasoning_effort")) applyEffort(readEffort(fields, "reasoning_effort"), chat);
    for (const char* key : {"thinking_budget", "reasoning_budget"}) {
        const std::optional<int64_t> budget = fields.integer(key, -1, kMostInt);
        if (budget && *budget >= 0) request.reasoningBudget = static_cast<int>(*budget);
    }
}

std::string readContent(const PythonValue& content, const std::string& path, std::string_view role,
                        std::initializer_list<std::string_view> types, ChatFormat format) {
    if (content.isString()) return content.text;
    if (content.type != Type::List)
        throw invalidRequest(path, "{} is {}, must be a text or a list of parts", path, shown(content));
    std::vector<std::string> texts;
    const Items parts{path, &content.items};
    for (size_t i = 0; i < parts.size(); i++) {
        const Fields part(parts[i], parts.pathOf(i));
        const std::string type = part.requiredText("type");
        if (std::find(types.begin(), types.end(), type) == types.end())
            throw invalidRequest(parts.pathOf(i), "{} is of type {}: the model reads texts only", parts.pathOf(i),
                                 shown(pythonText(type)));
        texts.push_back(part.requiredText(type == "refusal" ? "refusal" : "text"));
    }
    return joinContentParts(format, role, texts);
}

FunctionTool readFunction(const Fields& function, std::string_view schemaKey) {
    FunctionTool result;
    result.name = function.requiredText("name");
    if (!chat::isFunctionName(result.name) || result.name.size() > kMaxNameBytes)
        throw invalidRequest(function.pathOf("name"),
                             "{} is {}, must be 1 to {} bytes without white space and without any of <>{{}}\"'",
                             function.pathOf("name"), shown(pythonText(result.name)), kMaxNameBytes);
    function.text("description");
    if (function.has(schemaKey)) {
        function.object(schemaKey);
        result.parameters = toPythonJson(*function.find(schemaKey));
    }
    result.strict = function.flag("strict").value_or(false);
    return result;
}

std::string openAiTool(const Fields& function, std::string_view schemaKey) {
    PythonValue inner = pythonObject({{"name", *function.find("name")}});
    if (const PythonValue* description = function.find("description"))
        inner.members.push_back({"description", *description});
    if (const PythonValue* schema = function.find(schemaKey)) inner.members.push_back({"parameters", *schema});
    return toPythonJson(pythonObject({{"type", pythonText("function")}, {"function", std::move(inner)}}));
}

void checkFunctions(const std::vector<FunctionTool>& functions, const Items& tools) {
    if (functions.size() > kMaxFunctions)
        throw invalidRequest(tools.path, "{} has {} entries, must be at most {}", tools.path, functions.size(),
                             kMaxFunctions);
    std::unordered_set<std::string_view> names;
    for (size_t i = 0; i < functions.size(); i++) {
        if (!names.insert(functions[i].name).second)
            throw invalidRequest(tools.pathOf(i), "{} has the name {}, which another tool has", tools.pathOf(i),
                                 shown(pythonText(functions[i].name)));
    }
}

void requireCall(std::string_view path, ToolUse& tools) {
    if (tools.functions.empty())
        throw invalidRequest(std::string(path), "{} asks for a call, but there are no tools", path);
    tools.choice = ToolUse::Choice::Required;
}

void chooseFunction(const std::string& name, std::string_view path, ToolUse& tools) {
    for (const FunctionTool& function : tools.functions) {
        if (function.name != name) continue;
        tools.choice = ToolUse::Choice::Named;
        tools.name = name;
        return;
    }
    throw invalidRequest(std::string(path), "{} names the function {}, which is not among the tools", path,
                         shown(pythonText(name)));
}

void readToolChoice(const Fields& fields, ToolUse& use) {
    use.parallel = fields.flag("parallel_tool_calls").value_or(true);
    const PythonValue* choice = fields.find("tool_choice");
    if (!choice) return;
    if (choice->isString()) return chooseByWord(choice->text, "tool_choice", use);
    const Fields object(*choice, "tool_choice");
    if (readOneOf(object, "type", {"function", "allowed_tools"}) == "allowed_tools")
        return readAllowedTools(object, use);
    const Fields function = object.object("function").value_or(object);
    chooseFunction(function.requiredText("name"), "tool_choice", use);
}

ResponseFormat readFormat(const Fields& format, const std::optional<Fields>& schemaAt) {
    ResponseFormat result;
    const std::string type = readOneOf(format, "type", {"text", "json_object", "json_schema"});
    // llama.cpp's form gives a schema with json_object as well.
    const bool hasSchema = type == "json_schema" || (type == "json_object" && format.has("schema"));
    if (type == "json_object") result.kind = ResponseFormat::Kind::JsonObject;
    if (!hasSchema) return result;
    const Fields& at = type == "json_object" ? format : schemaAt ? *schemaAt : format;
    if (!at.object("schema")) throw invalidRequest(at.pathOf("schema"), "{} is missing", at.pathOf("schema"));
    result.kind = ResponseFormat::Kind::JsonSchema;
    result.schema = toPythonJson(*at.find("schema"));
    result.strict = at.flag("strict").value_or(false);
    return result;
}

PythonValue pythonText(std::string text) {
    PythonValue value;
    value.type = Type::String;
    value.text = std::move(text);
    return value;
}

PythonValue pythonObject(std::vector<PythonValue::Member> members) {
    PythonValue value;
    value.type = Type::Object;
    value.members = std::move(members);
    return value;
}

}  // namespace dllama::api
