#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "api/answer-writer.hpp"
#include "api/request-reader.hpp"

namespace dllama::api::test {

using Json = nlohmann::ordered_json;

inline const ReaderOptions kOptions = {.format = ChatFormat::Glm45, .vocabSize = 1000, .maxChoices = 16};
inline const AnswerName kName = {.id = "0a1b", .model = "story", .created = 1700000000};

struct SentEvent {
    std::string name;  // of `event:`; empty: none
    Json data;         // null for [DONE]
};

/// The events of a stream, which must be nothing else.
std::vector<SentEvent> eventsOf(std::string_view stream);

/// The error that the reader throws.
ApiError errorOf(const std::function<void()>& read);

Delta content(std::string text, int choice = 0);
Delta reasoning(std::string text);
Delta call(std::string name, std::string arguments, int index = 0);
TokenLogprobs logprob(std::string token, float value, std::vector<TokenLogprob> top = {});
Delta withLogprobs(Delta delta, std::vector<TokenLogprobs> logprobs);
ChoiceEnd end(EndReason reason, int choice = 0);

inline constexpr Usage kUsage = {.promptTokens = 10, .cachedTokens = 4, .completionTokens = 7, .reasoningTokens = 2};

/// All that a writer says about an answer of these parts.
std::string written(const GenerationRequest& request, const std::vector<Delta>& deltas,
                    const std::vector<ChoiceEnd>& ends);

/// Without timings, whose figures are tested by themselves.
Json withoutTimings(Json answer);

}  // namespace dllama::api::test
