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
    GlmEdge,
    Glm45,       ///< GLM-4.5, 4.5-Air, 4.6
    Glm45v,      ///< GLM-4.5V, 4.6V, GLM-OCR, text only
    Glm47,       ///< GLM-4.7, 4.7-Flash
    Glm52,       ///< GLM-5.2
    Glm53Flash,  ///< GLM-5.3-Flash
    Intellect3,
    Llama2,
    Llama3,
    Llama31,  ///< Llama 3.1 and 3.3: a fixed date
    Llama32,  ///< Llama 3.2: today's date
    Chatml,   ///< leaves the last message open where no answer is asked for
    ChatmlClosed,
    Qwen3,
    Qwen3Instruct2507,
    Qwen3Thinking2507,
    Qwen3Coder,
    Qwen3CoderGguf,  ///< Qwen3-Coder's template as GGUF files of third parties carry it
    DeepseekR1Distill,
    MistralV1Old,
    MistralV1,
    MistralV3,
    SolarOpen,
};

/// A call of a function in an assistant's message. `arguments` is the JSON text of an object, as in OpenAI's API.
struct ToolCall {
    std::string name;
    std::string arguments;
    std::string id = {};
    std::string type = "function";
};

/// `role` is system, user, assistant or tool (the result of a call). Texts are UTF-8.
struct ChatMessage {
    std::string role;
    std::string content;
    /// The assistant's thoughts, where the client sends them back.
    std::optional<std::string> reasoning = std::nullopt;
    std::vector<ToolCall> toolCalls = {};
    std::string toolCallId = {};  ///< of role tool: the call it answers
};

struct CalendarDate {
    int year = 1970, month = 1, day = 1;
};

/// One request. The fields below `addGenerationPrompt` are OpenAI's chat_template_kwargs; each family looks at those
/// its template knows, and what is not set has the template's own default.
struct ChatRequest {
    std::vector<ChatMessage> messages;
    std::vector<std::string> tools = {};  ///< JSON text of each entry of OpenAI's "tools"
    bool addGenerationPrompt = true;      ///< end with the beginning of an answer
    std::optional<bool> enableThinking = std::nullopt;
    std::optional<bool> clearThinking = std::nullopt;  ///< GLM-4.7 and later: drop old thoughts
    std::string reasoningEffort = {};
    bool toolsInUserMessage = true;                    ///< Llama 3.1 and later: where the list of tools goes
    std::string dateString = {};                       ///< Llama 3.1 and later: "Today Date"
    std::vector<std::string> builtinTools = {};        ///< Llama 3.1
    bool defaultSystemPrompt = true;                   ///< Solar-Open
    std::string thinkRenderOption = "lastthink";       ///< Solar-Open: or "all"
    std::optional<CalendarDate> today = std::nullopt;  ///< for templates with a clock; not set: this machine's
};

struct RenderedChat {
    std::vector<TextSegment> segments;
    bool endsInsideThink = false;  ///< the prompt ends inside <think>: the answer begins with thoughts

    /// The whole prompt as one text.
    std::string text() const;
};

/// The format of a tokenizer file, and where there is none (ChatFormat::None) why.
struct ChatChoice {
    ChatFormat format = ChatFormat::None;
    std::string reason = {};
};

/// The format whose template the text is, told by its parts, the generation prompt among them. Nothing for a template
/// that none of the formats renders.
std::optional<ChatFormat> detectChatFormat(std::string_view chatTemplate);

/// The format of a `.t` file: that of its template text, else that of its chat_format where the file has no template or
/// its converter compared the two by rendering. Throws FormatError if chat_format is no known name.
ChatChoice chooseChatFormat(const TokenizerFile& file);

/// The format of a name as on a command line: those of docs/file-format.md, and distributed-llama's.
/// Throws ConfigError for an unknown name.
ChatFormat chatFormatByName(std::string_view name);
/// The name of docs/file-format.md; "none" for None.
std::string_view chatFormatName(ChatFormat format);

/// The prompt of a request, equal to the family's own template to the byte. Only what the template writes itself is
/// marked parseSpecial: give `segments` to Tokenizer::encode. Beyond the templates:
/// - glm-4-9b-chat, 0414, Z1: a tool's result goes in as <|observation|>, a call as <|assistant|>name with the
/// arguments
///   as they came (the publisher's server does so); Z1 is rendered as 0414, plus its <think>;
/// - chatglm, chatglm2, llama2: tool messages are refused; a system text stands before the first question in the first
///   two, which have no system role.
/// Throws ConfigError, with a text for the client, for what the template refuses: a role it does not know, arguments
/// that are no JSON object, Llama's parallel calls, Mistral's order of roles.
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
