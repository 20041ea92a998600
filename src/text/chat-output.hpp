#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat-format.hpp"

namespace dllama {

/// A part of an answer that is certain: what has been told is never taken back.
struct OutputDelta {
    enum class Kind { Reasoning, Content, Call };
    Kind kind = Kind::Content;
    std::string text;  ///< of a call: its arguments, the JSON text of an object
    std::string name;  ///< of a call
    int index = 0;     ///< of a call: 0, 1, ...

    bool operator==(const OutputDelta&) const = default;
};

/// Reads the text that a model generates, as it comes: thoughts, content and calls of functions.
///
/// Thoughts end at </think>. Calls count only behind them (or where they end a thought that is never closed), only if
/// the request has tools, and only if they are whole and well-formed; everything else is content, to the byte, but for
/// line feeds at its beginning and white space in front of a call and behind the last. A call comes as one delta.
/// The text must not hold the stop token. Special tokens that are part of the format come as their text: see
/// outputMarks().
class ChatOutputParser {
  public:
    /// `tools` are JSON texts, as in ChatRequest; leave them out where the client wants no calls (tool_choice none).
    /// insideThink: RenderedChat::endsInsideThink of the prompt.
    ChatOutputParser(ChatFormat format, const std::vector<std::string>& tools, bool insideThink);
    ~ChatOutputParser();
    ChatOutputParser(ChatOutputParser&&) noexcept;

    /// Takes the next part of the text, cut anywhere.
    std::vector<OutputDelta> push(std::string_view text);
    /// The answer is over; cutOff: because the limit of tokens was reached.
    std::vector<OutputDelta> finish(bool cutOff);
    /// The format says that the answer is over, although no stop token has come.
    bool ended() const;

  private:
    class State;
    std::unique_ptr<State> state_;
};

/// Texts of special tokens that the parser needs to see.
std::vector<std::string_view> outputMarks(ChatFormat format);

/// A whole answer.
struct ParsedAnswer {
    std::optional<std::string> reasoning;
    std::optional<std::string> content;  ///< nothing where there are thoughts or calls and no text
    std::vector<ToolCall> calls;
    std::string finishReason;  ///< stop, length or tool_calls
};

/// Puts deltas together.
class AnswerCollector {
  public:
    void add(const std::vector<OutputDelta>& deltas);
    /// cutOff: the limit of tokens was reached.
    ParsedAnswer answer(bool cutOff) const;

  private:
    std::string reasoning_, content_;
    std::vector<ToolCall> calls_;
};

}  // namespace dllama
