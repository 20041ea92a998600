#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "text/chat-format.hpp"
#include "text/chat-output.hpp"

/// What a client asks for and what it gets, in the same values whichever API it speaks.
namespace dllama::api {

/// POST /v1/chat/completions, /v1/completions, /v1/responses, and Anthropic's /v1/messages.
enum class Dialect { Chat, Completion, Responses, Messages };

/// What the client says about sampling; what is not set has the server's default. All values are in range.
struct SamplingFields {
    std::optional<float> temperature = std::nullopt;  ///< 0 to 2; 0: the most likely token
    std::optional<float> topP = std::nullopt;         ///< above 0, to 1; a client's 0 is a tiny number here, 1 is off
    std::optional<float> minP = std::nullopt;         ///< 0 to 1; 0: off
    std::optional<int> topK = std::nullopt;           ///< 0: off
    std::optional<float> repetitionPenalty = std::nullopt;  ///< 0.01 to 100; 1: off
    std::optional<uint64_t> seed = std::nullopt;            ///< not set: another one for each request
    float presencePenalty = 0.0f;                       ///< -2 to 2, taken from the logit of each token that has come
    float frequencyPenalty = 0.0f;                      ///< -2 to 2, the same for each time it has come
    std::vector<std::pair<int, float>> logitBias = {};  ///< token id, -100 to 100
};

/// A function that the model may call.
struct FunctionTool {
    std::string name;
    std::string parameters;  ///< JSON text of the schema of its arguments; empty: none was given
    bool strict = false;
};

struct ToolUse {
    enum class Choice { Auto, None, Required, Named };

    /// Those that may be called: a choice of the request's tools, all of which are in the prompt.
    std::vector<FunctionTool> functions = {};
    Choice choice = Choice::Auto;
    std::string name = {};  ///< of the function that must be called (Named)
    bool parallel = true;   ///< several calls in one answer
};

struct ResponseFormat {
    enum class Kind { Text, JsonObject, JsonSchema };

    Kind kind = Kind::Text;
    std::string schema = {};  ///< JSON text of an object (JsonSchema)
    bool strict = false;
};

/// A conversation, a text, or token ids (all in the vocabulary).
using Prompt = std::variant<ChatRequest, std::string, std::vector<int>>;

struct GenerationRequest {
    Dialect dialect = Dialect::Chat;
    std::string model = {};  ///< the name asked for; empty: none, whatever is served
    /// Never empty; several only in /v1/completions.
    std::vector<Prompt> prompts = {};
    /// Answers to each prompt. Choice number c is answer c % n to prompt c / n.
    int n = 1;

    SamplingFields sampling = {};
    std::optional<int> maxTokens = std::nullopt;  ///< not set: up to the context length
    int minTokens = 0;                            ///< the answer does not end by itself before
    bool ignoreEos = false;                       ///< nor at all
    std::vector<std::string> stop = {};           ///< no empty texts
    bool logprobs = false;
    int topLogprobs = 0;  ///< alternatives told for each token

    ToolUse tools = {};
    ResponseFormat format = {};
    /// Tokens of thinking at most. Whether to think, and how hard, is said in the ChatRequest.
    std::optional<int> reasoningBudget = std::nullopt;

    /// The answer goes on from this text, which stands behind the prompt and is not part of the answer: the assistant's
    /// last message of /v1/messages. renderPrompt() adds it.
    std::string answerBegin = {};

    bool stream = false;
    bool includeUsage = false;  ///< a streamed answer ends with its usage
    bool echo = false;          ///< each choice begins with its prompt's text (/v1/completions)
    /// /v1/responses: the fields that the answer repeats, JSON text of an object.
    std::string repeatedFields = {};

    int nChoices() const { return static_cast<int>(prompts.size()) * n; }
};

/// A token as its bytes, which are not always whole characters, and its natural log probability.
struct TokenLogprob {
    std::string token;
    float logprob = 0.0f;
};

/// A generated token and the most likely ones in its place, the likeliest first.
struct TokenLogprobs {
    TokenLogprob token;
    std::vector<TokenLogprob> top = {};
};

/// A part of an answer. A call's first part carries its name, index and as much of its arguments as there is; further
/// parts with an empty name carry on with the arguments of the call of that index. An empty text is allowed where only
/// log probabilities have come.
struct Delta {
    int choice = 0;
    OutputDelta part = {};
    std::vector<TokenLogprobs> logprobs = {};  ///< where asked for: of the tokens since the last delta
};

enum class EndReason {
    Stop,       ///< the model has said what it had to say
    StopText,   ///< a stop text of the client came
    MaxTokens,  ///< the client's limit
    Context,    ///< the context is full
};

/// The end of one choice.
struct ChoiceEnd {
    int choice = 0;
    EndReason reason = EndReason::Stop;
    std::string stopText = {};  ///< the text that came (StopText)
    std::vector<TokenLogprobs> logprobs = {};
};

/// Tokens of a whole request, all choices together; a prompt counts once however many answers it gets.
struct Usage {
    int promptTokens = 0;
    int cachedTokens = 0;  ///< those of the prompt that were in the prefix cache
    int completionTokens = 0;
    int reasoningTokens = 0;  ///< those of the completion that were thoughts
};

struct Timings {
    double promptSeconds = 0.0;      ///< from the request's start to its first token
    double completionSeconds = 0.0;  ///< from there to the end
};

}  // namespace dllama::api
