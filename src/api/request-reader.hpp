#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "api/generation.hpp"

/// JSON of a request -> values. All of it is checked here: type and range of each field. Fields that no API knows are
/// ignored, as OpenAI does; what an API knows and this server cannot do (pictures, built-in tools, kept state) is
/// refused by name. Every function throws ApiError and nothing else, whatever the body holds.
namespace dllama::api {

/// What a reader must know of the model that is served.
struct ReaderOptions {
    ChatFormat format = ChatFormat::None;
    int vocabSize = 0;     ///< token ids in requests are below it
    int maxChoices = 128;  ///< prompts times n
};

/// POST /v1/chat/completions
GenerationRequest readChatCompletion(std::string_view body, const ReaderOptions& options);
/// POST /v1/completions
GenerationRequest readCompletion(std::string_view body, const ReaderOptions& options);
/// POST /v1/responses. Nothing is kept between requests: what refers to an earlier one is refused.
GenerationRequest readResponsesRequest(std::string_view body, const ReaderOptions& options);
/// POST /v1/messages. A request that does not speak of thinking gets none, as at Anthropic.
GenerationRequest readMessagesRequest(std::string_view body, const ReaderOptions& options);
/// POST /v1/messages/count_tokens: the same, but for max_tokens, which need not be given.
GenerationRequest readCountTokens(std::string_view body, const ReaderOptions& options);

/// The request of that dialect.
GenerationRequest readGeneration(Dialect dialect, std::string_view body, const ReaderOptions& options);

/// The prompt that a conversation becomes, with the beginning of the answer that the request gives. Throws ApiError
/// where the model's chat format refuses it.
RenderedChat renderPrompt(ChatFormat format, const GenerationRequest& request, const ChatRequest& chat);

}  // namespace dllama::api
