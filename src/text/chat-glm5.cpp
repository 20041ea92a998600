#include <algorithm>
#include <set>

#include "text/chat-glm-parts.hpp"
#include "text/utf8.hpp"

/// The templates of GLM-5.2 and GLM-5.3-Flash (chat_template.jinja of their checkpoints).
namespace dllama::chat {
namespace {

/// A tool without the fields that are meant for the server, one that is loaded later not at all.
void writeTool(const PythonValue& tool, Writer& writer) {
    const PythonValue* inner = tool.find("function");
    const PythonValue& function = inner ? *inner : tool;
    if (const PythonValue* later = function.find("defer_loading"); later && later->isTrue()) return;
    std::string json;
    for (const auto& [key, value] : function.members) {
        if (key == "defer_loading" || key == "strict") continue;
        json += fmt::format("{}\"{}\": {}", json.empty() ? "" : ", ", key, toPythonJson(value));
    }
    writer.text("{" + json + "}").marker("\n");
}

/// Thoughts as these templates take them: not stripped, and there or not there (even if empty).
struct Thoughts {
    std::optional<std::string_view> reasoning;
    std::string_view content;
};

Thoughts thoughtsOf(const ChatMessage& message) {
    constexpr std::string_view kOpen = "<think>";
    constexpr std::string_view kClose = "</think>";
    const std::string_view all = message.content;
    if (message.reasoning) return {*message.reasoning, all};
    const size_t first = all.find(kClose);
    if (first == std::string_view::npos) return {std::nullopt, all};
    std::string_view reasoning = all.substr(0, first);
    if (const size_t open = reasoning.rfind(kOpen); open != std::string_view::npos)
        reasoning.remove_prefix(open + kOpen.size());
    return {reasoning, all.substr(all.rfind(kClose) + kClose.size())};
}

void writeAssistant(const ChatMessage& message, bool keepReasoning, Writer& writer) {
    const Thoughts thoughts = thoughtsOf(message);
    writer.marker("<|assistant|>").marker("<think>");
    if (keepReasoning && thoughts.reasoning) writer.text(*thoughts.reasoning);
    writer.marker("</think>").text(stripUnicode(thoughts.content));
    for (const ToolCall& call : message.toolCalls) writeGlmCall(call, "", writer);
}

/// The results [begin, end) in the order of the calls they answer, as GLM-5.3 puts them; in their own order unless
/// every result and every call has an id of its own and each result's call is there.
std::vector<size_t> resultOrder(const ChatRequest& request, size_t begin, size_t end) {
    std::vector<size_t> own;
    for (size_t i = begin; i < end; i++) own.push_back(i);
    if (begin == 0 || request.messages[begin - 1].role != "assistant") return own;
    const std::vector<ToolCall>& calls = request.messages[begin - 1].toolCalls;
    std::set<std::string_view> callIds, resultIds;
    for (const ToolCall& call : calls) {
        if (call.id.empty() || !callIds.insert(call.id).second) return own;
    }
    for (size_t i : own) {
        const std::string& id = request.messages[i].toolCallId;
        if (id.empty() || !callIds.contains(id) || !resultIds.insert(id).second) return own;
    }
    std::vector<size_t> sorted;
    for (const ToolCall& call : calls) {
        for (size_t i : own) {
            if (request.messages[i].toolCallId == call.id) sorted.push_back(i);
        }
    }
    return sorted;
}

}  // namespace

RenderedChat renderGlm5(ChatFormat format, const ChatRequest& request) {
    const bool flash = format == ChatFormat::Glm53Flash;
    const bool thinkingOff = !flash && request.enableThinking == false;
    Writer writer;
    writer.marker("[gMASK]").marker("<sop>");
    if (!thinkingOff) {
        writer.marker("<|system|>").marker("Reasoning Effort: ");
        if (request.reasoningEffort == "high") {
            writer.marker("High");
        } else {
            writer.marker(flash && request.reasoningEffort == "low" ? "Low" : "Max");
        }
    }
    if (const std::vector<PythonValue> tools = parseTools(request); !tools.empty()) {
        writer.marker("<|system|>").marker(kGlmToolsBegin);
        for (const PythonValue& tool : tools) writeTool(tool, writer);
        writer.marker(kGlmToolsEnd).marker(kGlmCallOnOneLine);
    }
    const auto lastUser = lastUserIndex(request);
    const bool clear = request.clearThinking.value_or(!flash);
    const auto& messages = request.messages;
    for (size_t i = 0; i < messages.size(); i++) {
        if (messages[i].role == "assistant") {
            writeAssistant(messages[i], !clear || !lastUser || i > *lastUser, writer);
        } else if (messages[i].role == "tool") {
            size_t end = i;
            while (isTool(request, end)) end++;
            writer.marker("<|observation|>");
            std::vector<size_t> order;
            for (size_t k = i; k < end; k++) order.push_back(k);
            if (flash) order = resultOrder(request, i, end);
            for (size_t k : order) {
                writer.marker("<tool_response>").text(messages[k].content).marker("</tool_response>");
            }
            i = end - 1;
        } else {
            writer.marker(messages[i].role == "user" ? "<|user|>" : "<|system|>").text(messages[i].content);
        }
    }
    if (request.addGenerationPrompt) {
        writer.marker("<|assistant|>").marker(thinkingOff ? "<think></think>" : "<think>");
        writer.result.endsInsideThink = !thinkingOff;
    }
    return std::move(writer.result);
}

}  // namespace dllama::chat
