#pragma once

#include <string>
#include <string_view>

#include "api/generation.hpp"
#include "base/errors.hpp"

namespace dllama::api {

enum class ErrorKind {
    InvalidRequest,   ///< 400
    ContextLength,    ///< 400: the prompt is longer than the context
    Authentication,   ///< 401
    NotFound,         ///< 404: the path
    ModelNotFound,    ///< 404
    WrongMethod,      ///< 405
    Timeout,          ///< 408: the client takes too long to send
    TooLarge,         ///< 413: the body
    HeadersTooLarge,  ///< 431
    RateLimit,        ///< 429: the queue is full
    Internal,         ///< 500
    NotSupported,     ///< 501
    Unavailable,      ///< 503: loading, shutting down, or the cluster is lost
};

/// An answer that is an error. what() is for the client: it names the field, its value and the limits, and nothing of
/// this machine.
struct ApiError : Error {
    ApiError(ErrorKind kind, std::string param, const std::string& message)
        : Error("{}", message), kind(kind), param(std::move(param)) {}

    ErrorKind kind;
    std::string param;  ///< the field at fault, as messages[2].content; empty: none

    int status() const;  ///< of HTTP
};

/// 400, of a field.
template <typename... Args>
ApiError invalidRequest(std::string param, fmt::format_string<Args...> format, Args&&... args) {
    return {ErrorKind::InvalidRequest, std::move(param), fmt::format(format, std::forward<Args>(args)...)};
}
ApiError modelNotFound(std::string_view asked);
ApiError contextTooLong(int nPromptTokens, int contextLength);

/// The whole body of the answer: {"error":{message,type,param,code}}, and {"type":"error","error":{type,message}} for
/// Anthropic's paths.
std::string errorBody(Dialect dialect, const ApiError& error);

}  // namespace dllama::api
