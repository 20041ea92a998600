#include "api/api-error.hpp"

#include "api/json-output.hpp"

namespace dllama::api {

namespace {

struct KindRow {
    ErrorKind kind;
    int status;
    const char* openAiType;
    const char* anthropicType;
    const char* code;  // of OpenAI's form; null: none
};

constexpr KindRow kKinds[] = {
    {ErrorKind::InvalidRequest, 400, "invalid_request_error", "invalid_request_error", nullptr},
    {ErrorKind::ContextLength, 400, "invalid_request_error", "invalid_request_error", "context_length_exceeded"},
    {ErrorKind::Authentication, 401, "authentication_error", "authentication_error", "invalid_api_key"},
    {ErrorKind::NotFound, 404, "not_found_error", "not_found_error", nullptr},
    {ErrorKind::ModelNotFound, 404, "invalid_request_error", "not_found_error", "model_not_found"},
    {ErrorKind::WrongMethod, 405, "invalid_request_error", "invalid_request_error", nullptr},
    {ErrorKind::Timeout, 408, "invalid_request_error", "invalid_request_error", nullptr},
    {ErrorKind::TooLarge, 413, "invalid_request_error", "request_too_large", nullptr},
    {ErrorKind::RateLimit, 429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded"},
    {ErrorKind::HeadersTooLarge, 431, "invalid_request_error", "request_too_large", nullptr},
    {ErrorKind::Internal, 500, "server_error", "api_error", nullptr},
    {ErrorKind::NotSupported, 501, "not_supported_error", "api_error", nullptr},
    {ErrorKind::Unavailable, 503, "unavailable_error", "overloaded_error", nullptr},
};

const KindRow& rowOf(ErrorKind kind) {
    for (const KindRow& row : kKinds)
        if (row.kind == kind) return row;
    DLLAMA_CHECK(!"every kind has a row");
    return kKinds[0];
}

}  // namespace

int ApiError::status() const {
    return rowOf(kind).status;
}

ApiError modelNotFound(std::string_view asked) {
    return {ErrorKind::ModelNotFound, "model", fmt::format("the model {} is not served here", quotedText(asked))};
}

ApiError contextTooLong(int nPromptTokens, int contextLength) {
    return {ErrorKind::ContextLength, "messages",
            fmt::format("the prompt has {} tokens; the context length is {} tokens and must hold the answer as well",
                        nPromptTokens, contextLength)};
}

Json errorJson(Dialect dialect, const ApiError& error) {
    const KindRow& row = rowOf(error.kind);
    if (dialect == Dialect::Messages)
        return {{"type", "error"}, {"error", {{"type", row.anthropicType}, {"message", error.what()}}}};
    Json inner = {{"message", error.what()}, {"type", row.openAiType}};
    inner["param"] = error.param.empty() ? Json() : Json(error.param);
    inner["code"] = row.code ? Json(row.code) : Json();
    return {{"error", inner}};
}

std::string errorBody(Dialect dialect, const ApiError& error) {
    return dump(errorJson(dialect, error));
}

}  // namespace dllama::api
