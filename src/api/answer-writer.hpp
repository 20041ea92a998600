#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "api/api-error.hpp"
#include "api/generation.hpp"

namespace dllama::api {

/// What an answer is called.
struct AnswerName {
    std::string id;       ///< letters and digits, another one for each answer; each API puts its own mark in front
    std::string model;    ///< the name that is served
    int64_t created = 0;  ///< seconds since 1970
    /// Mistral's templates take ids of calls that are nine letters and digits; others take any.
    bool shortCallIds = false;
};

/// Writes one answer in the form of one API: streamed, as server-sent events, or whole, as one JSON text. Each function
/// returns the bytes to send now; of a whole answer all come with finish(). The order of calls: begin, then add and end
/// of all choices in any order (a choice gets nothing behind its end), then finish; or at any time behind begin, fail.
class AnswerWriter {
  public:
    virtual ~AnswerWriter() = default;

    /// The request is accepted and its prompt counted (promptTokens and cachedTokens).
    virtual std::string begin(const Usage& usage) = 0;
    virtual std::string add(const Delta& delta) = 0;
    virtual std::string end(const ChoiceEnd& end) = 0;
    virtual std::string finish(const Usage& usage, const Timings& timings) = 0;
    /// The answer cannot be finished. A stream ends with the error; instead of a whole answer it is errorBody().
    virtual std::string fail(const ApiError& error) = 0;
};

/// Of the request's dialect. The writer copies what it needs.
std::unique_ptr<AnswerWriter> makeAnswerWriter(const GenerationRequest& request, AnswerName name);

/// text/event-stream or application/json.
std::string_view answerContentType(const GenerationRequest& request);

}  // namespace dllama::api
