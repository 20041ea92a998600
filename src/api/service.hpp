#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/api-error.hpp"
#include "api/request-reader.hpp"

/// The routes beside the answers: models, tokens, properties. The functions that read throw ApiError and nothing else.
namespace dllama::api {

struct ServedModel {
    std::string id;
    int64_t created = 0;  ///< seconds since 1970
    int contextLength = 0;
    int vocabSize = 0;
};

/// GET /v1/models: OpenAI's list, with the members that Anthropic's client looks for.
std::string modelsBody(const std::vector<ServedModel>& models);
/// GET /v1/models/{id}
std::string modelBody(const ServedModel& model);

/// POST /tokenize
struct TokenizeRequest {
    std::string content;
    bool addSpecial = false;   ///< what the tokenizer puts in front of a text
    bool parseSpecial = true;  ///< texts of special tokens become those tokens
    bool withPieces = false;
};
TokenizeRequest readTokenize(std::string_view body);
std::string tokensBody(const std::vector<int>& tokens);
/// With the bytes of each token: as a text, or as a list of numbers if they are no UTF-8.
std::string piecesBody(const std::vector<std::pair<int, std::string>>& pieces);

/// POST /detokenize
std::vector<int> readDetokenize(std::string_view body, const ReaderOptions& options);
std::string detokenizedBody(const std::string& text);

/// POST /v1/messages/count_tokens
std::string countTokensBody(int nTokens);

/// GET /props, with llama-server's names.
struct ServerProperties {
    std::string modelName;  ///< no path
    std::string chatTemplate;
    std::string buildInfo;
    int contextLength = 0;
    int nParallel = 0;
    SamplingFields defaults = {};  ///< of requests that do not say
};
std::string propsBody(const ServerProperties& properties);

/// 501 for POST /v1/embeddings.
ApiError embeddingsNotOffered();

}  // namespace dllama::api
