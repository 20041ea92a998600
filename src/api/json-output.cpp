#include "api/json-output.hpp"

namespace dllama::api {

namespace {

Json tokenJson(const TokenLogprob& token) {
    Json bytes = Json::array();
    for (char c : token.token) bytes.push_back(static_cast<unsigned char>(c));
    return {{"token", token.token}, {"logprob", token.logprob}, {"bytes", std::move(bytes)}};
}

}  // namespace

std::string dump(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string sseEvent(const Json& data) {
    return "data: " + dump(data) + "\n\n";
}

std::string sseEvent(std::string_view name, const Json& data) {
    return fmt::format("event: {}\ndata: {}\n\n", name, dump(data));
}

std::string quotedText(std::string_view text) {
    constexpr size_t kShown = 64;
    std::string shown = dump(Json(text.substr(0, kShown)));
    if (text.size() > kShown) shown.insert(shown.size() - 1, "...");
    return shown;
}

Json timingsJson(const Usage& usage, const Timings& timings) {
    const int nPrompt = usage.promptTokens - usage.cachedTokens;
    const auto perToken = [](double seconds, int n) { return n > 0 ? 1000.0 * seconds / n : 0.0; };
    const auto perSecond = [](double seconds, int n) { return seconds > 0.0 ? n / seconds : 0.0; };
    return {{"cache_n", usage.cachedTokens},
            {"prompt_n", nPrompt},
            {"prompt_ms", 1000.0 * timings.promptSeconds},
            {"prompt_per_token_ms", perToken(timings.promptSeconds, nPrompt)},
            {"prompt_per_second", perSecond(timings.promptSeconds, nPrompt)},
            {"predicted_n", usage.completionTokens},
            {"predicted_ms", 1000.0 * timings.completionSeconds},
            {"predicted_per_token_ms", perToken(timings.completionSeconds, usage.completionTokens)},
            {"predicted_per_second", perSecond(timings.completionSeconds, usage.completionTokens)}};
}

Json usageJson(const Usage& usage) {
    return {{"prompt_tokens", usage.promptTokens},
            {"completion_tokens", usage.completionTokens},
            {"total_tokens", usage.promptTokens + usage.completionTokens},
            {"prompt_tokens_details", {{"cached_tokens", usage.cachedTokens}}},
            {"completion_tokens_details", {{"reasoning_tokens", usage.reasoningTokens}}}};
}

Json logprobsJson(const std::vector<TokenLogprobs>& logprobs) {
    Json list = Json::array();
    for (const TokenLogprobs& entry : logprobs) {
        Json token = tokenJson(entry.token);
        token["top_logprobs"] = Json::array();
        for (const TokenLogprob& other : entry.top) token["top_logprobs"].push_back(tokenJson(other));
        list.push_back(std::move(token));
    }
    return list;
}

}  // namespace dllama::api
