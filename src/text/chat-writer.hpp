#pragma once

#include <string>
#include <string_view>

#include "base/errors.hpp"
#include "text/chat-format.hpp"
#include "text/python-json.hpp"

/// What the renderers of the chat families share.
namespace dllama::chat {

/// Collects a prompt. What the template itself writes goes in by marker(), and may hold special tokens; whatever comes
/// from the request goes in by text(), and never does.
class Writer {
  public:
    Writer& marker(std::string_view text) { return add(text, true, false); }
    Writer& text(std::string_view text) { return add(text, false, false); }
    /// A text that the tokenizer meets on its own.
    Writer& separate(std::string_view text) { return add(text, false, true); }

    RenderedChat result;

  private:
    Writer& add(std::string_view text, bool parseSpecial, bool separate) {
        if (!text.empty()) result.segments.push_back({std::string(text), parseSpecial, separate});
        return *this;
    }
};

/// An assistant's message whose thoughts have been taken out of its content.
struct SplitAnswer {
    std::string reasoning;
    std::string content;
};

/// The thoughts from their own field or, as the templates do, from the content around </think>.
SplitAnswer splitAnswer(const ChatMessage& message);

/// `text` without the line feeds at its left or right end.
std::string_view stripLineFeedsLeft(std::string_view text);
std::string_view stripLineFeedsRight(std::string_view text);

/// The arguments of a call as an object; no text counts as an empty object. Throws ConfigError for anything else.
PythonValue parseArguments(const ToolCall& call);
/// The tools of a request. Throws ConfigError for what is no object.
std::vector<PythonValue> parseTools(const ChatRequest& request);
/// The "function" of a tool, or the tool itself if it has none.
const PythonValue& functionOf(const PythonValue& tool);

bool isTool(const ChatRequest& request, size_t index);  ///< message `index` exists and has role tool
/// The last message of role user.
std::optional<size_t> lastUserIndex(const ChatRequest& request);
/// The date that a template with a clock writes.
CalendarDate dateOf(const ChatRequest& request);

RenderedChat renderGlm4(ChatFormat format, const ChatRequest& request);     // 9b-chat, 0414, Z1
RenderedChat renderGlmEdge(ChatFormat format, const ChatRequest& request);  // GLM-Edge
RenderedChat renderGlm45(ChatFormat format, const ChatRequest& request);    // 4.5, 4.5V, 4.7
RenderedChat renderGlm5(ChatFormat format, const ChatRequest& request);     // 5.2, 5.3-Flash
RenderedChat renderChatglm(ChatFormat format, const ChatRequest& request);
RenderedChat renderLlama2(ChatFormat format, const ChatRequest& request);
RenderedChat renderLlama3(ChatFormat format, const ChatRequest& request);  // 3, 3.1, 3.2
RenderedChat renderChatml(ChatFormat format, const ChatRequest& request);
RenderedChat renderQwen3(ChatFormat format, const ChatRequest& request);      // Qwen3, 2507 Instruct and Thinking
RenderedChat renderQwenCoder(ChatFormat format, const ChatRequest& request);  // Qwen3-Coder, INTELLECT-3
RenderedChat renderDeepseek(ChatFormat format, const ChatRequest& request);   // R1-Distill
RenderedChat renderMistralV1(ChatFormat format, const ChatRequest& request);  // v1, v1-old
RenderedChat renderMistralV3(ChatFormat format, const ChatRequest& request);
RenderedChat renderSolar(ChatFormat format, const ChatRequest& request);

}  // namespace dllama::chat
