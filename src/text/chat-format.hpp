#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.hpp"

namespace dllama {

/// How a conversation becomes a prompt: each family's published chat template, written as code.
enum class ChatFormat {
    None,  ///< plain continuation: the contents of the messages one after the other
    Chatglm,
    Chatglm2,
    Chatglm3,
    Glm49bChat,  ///< glm-4-9b-chat
    Glm40414,    ///< GLM-4-9B-0414, GLM-4-32B-0414
    GlmZ1,
    Glm45,  ///< GLM-4.5, 4.5-Air, 4.6
    Glm47,
    Intellect3,
    Llama2,
    Llama3,
    Llama31,  ///< Llama 3.1 and later, whose template states dates and knows tools
    Chatml,
    Qwen3,
};

/// A call of a function in an assistant's message. `arguments` is the JSON text of an object, as in OpenAI's API.
struct ToolCall {
    std::string name;
    std::string arguments;
};

/// `role` is system, user, assistant or tool (the result of a call). Texts are UTF-8.
struct ChatMessage {
    std::string role;
    std::string content;
    std::optional<std::string> reasoning =
        std::nullopt;  ///< the assistant's thoughts, where the client sends them back
    std::vector<ToolCall> toolCalls = {};
};

struct ChatRequest {
    std::vector<ChatMessage> messages;
    std::vector<std::string> tools = {};  ///< JSON text of each entry of OpenAI's "tools"
    bool addGenerationPrompt = true;      ///< end with the beginning of an answer
    std::optional<bool> enableThinking = std::nullopt;
    bool clearThinking = true;               ///< glm-4.7: drop the thoughts before the last user message
    bool toolsInUserMessage = true;          ///< Llama 3.1: where the list of tools goes
    std::string dateString = "26 Jul 2024";  ///< Llama 3.1: "Today Date", by default the template's own
};

struct RenderedChat {
    std::vector<TextSegment> segments;
    bool endsInsideThink = false;  ///< the prompt ends inside <think>: the answer begins with thoughts

    /// The whole prompt as one text.
    std::string text() const;
};

/// The format by its name in a `.t` file, "" included; a file that says llama3 has Llama31 if its template text knows
/// the date lines of Llama 3.1. Throws FormatError for an unknown name.
ChatFormat chatFormatOf(const TokenizerFile& file);
/// The format of a name alone, as for a command line: the names of docs/file-format.md and "llama3.1".
/// Throws ConfigError for an unknown name.
ChatFormat chatFormatByName(std::string_view name);

/// The prompt of a request, equal to the family's own template to the byte. Only what the template writes itself is
/// marked parseSpecial: give `segments` to Tokenizer::encode. Beyond the templates:
/// - glm-4-9b-chat, 0414, Z1: a tool's result goes in as <|observation|>, a call as <|assistant|>name with the
/// arguments
///   as they came (the publisher's server does so); Z1 is rendered as 0414, plus its <think>;
/// - chatglm, chatglm2, llama2: tool messages are refused; a system text stands before the first question in the first
///   two, which have no system role.
/// Throws ConfigError, with a text for the client, for what the template refuses: a role it does not know, arguments
/// that are no JSON object, Llama 3.1's parallel calls.
RenderedChat renderChat(ChatFormat format, const ChatRequest& request);

/// Parts of one message's content (OpenAI's list of text parts) as the family's template joins them.
std::string joinContentParts(ChatFormat format, std::string_view role, std::span<const std::string> parts);

/// What ends an answer besides the tokenizer's end-of-text ids.
struct ChatStops {
    std::vector<int> ids;
    std::vector<std::string> texts;  ///< markers that this tokenizer has no token for
};
ChatStops chatStops(ChatFormat format, const Tokenizer& tokenizer);

/// True if the model begins its answers with white space of the template ("\n" after <|assistant|>), which a client
/// does not want to see.
bool answersBeginWithWhiteSpace(ChatFormat format);

}  // namespace dllama
