#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "api/api-error.hpp"
#include "api/generation.hpp"

/// What the writers share. Only the .cpp files of this folder include it.
namespace dllama::api {

using Json = nlohmann::ordered_json;

/// JSON text on one line; bytes that are no UTF-8 become U+FFFD.
std::string dump(const Json& value);

/// A server-sent event, with a name (`event: NAME`) or without.
std::string sseEvent(const Json& data);
std::string sseEvent(std::string_view name, const Json& data);

/// A text of a client for an error message: quoted as JSON, the first 64 bytes of it.
std::string quotedText(std::string_view text);

Json errorJson(Dialect dialect, const ApiError& error);

/// prompt_n, prompt_ms, ...: llama-server's names.
Json timingsJson(const Usage& usage, const Timings& timings);
/// prompt_tokens, completion_tokens, total_tokens and their details.
Json usageJson(const Usage& usage);
/// {token, logprob, bytes, top_logprobs[]} of each.
Json logprobsJson(const std::vector<TokenLogprobs>& logprobs);

}  // namespace dllama::api
