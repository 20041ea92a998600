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

}  // namespace dllama::api
