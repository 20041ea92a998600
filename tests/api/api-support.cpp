#include "api-support.hpp"

#include <gtest/gtest.h>

namespace dllama::api::test {

std::vector<SentEvent> eventsOf(std::string_view stream) {
    std::vector<SentEvent> events;
    while (!stream.empty()) {
        const size_t blank = stream.find("\n\n");
        if (blank == std::string_view::npos) {
            ADD_FAILURE() << "no blank line behind " << stream;
            return events;
        }
        std::string_view event = stream.substr(0, blank);
        stream.remove_prefix(blank + 2);
        SentEvent sent;
        if (event.starts_with("event: ")) {
            sent.name = event.substr(7, event.find('\n') - 7);
            event.remove_prefix(8 + sent.name.size());
        }
        if (!event.starts_with("data: ") || event.find('\n') != std::string_view::npos) {
            ADD_FAILURE() << "not one line of data: " << event;
            return events;
        }
        event.remove_prefix(6);
        if (event != "[DONE]") sent.data = Json::parse(event);
        events.push_back(std::move(sent));
    }
    return events;
}

ApiError errorOf(const std::function<void()>& read) {
    try {
        read();
    } catch (const ApiError& error) {
        return error;
    }
    ADD_FAILURE() << "this request is to be refused";
    return {ErrorKind::Internal, "", ""};
}

Delta content(std::string text, int choice) {
    return {choice, {OutputDelta::Kind::Content, std::move(text), "", 0}, {}};
}
Delta reasoning(std::string text) {
    return {0, {OutputDelta::Kind::Reasoning, std::move(text), "", 0}, {}};
}
Delta call(std::string name, std::string arguments, int index) {
    return {0, {OutputDelta::Kind::Call, std::move(arguments), std::move(name), index}, {}};
}
TokenLogprobs logprob(std::string token, float value, std::vector<TokenLogprob> top) {
    TokenLogprobs result;
    result.token.token = std::move(token);
    result.token.logprob = value;
    result.top = std::move(top);
    return result;
}
Delta withLogprobs(Delta delta, std::vector<TokenLogprobs> logprobs) {
    delta.logprobs = std::move(logprobs);
    return delta;
}
ChoiceEnd end(EndReason reason, int choice) {
    return {choice, reason, "", {}};
}

std::string written(const GenerationRequest& request, const std::vector<Delta>& deltas,
                    const std::vector<ChoiceEnd>& ends) {
    const auto writer = makeAnswerWriter(request, kName);
    std::string out = writer->begin({.promptTokens = 10, .cachedTokens = 4});
    for (const Delta& delta : deltas) out += writer->add(delta);
    for (const ChoiceEnd& one : ends) out += writer->end(one);
    return out + writer->finish(kUsage, {.promptSeconds = 0.5, .completionSeconds = 2.0});
}

Json withoutTimings(Json answer) {
    answer.erase("timings");
    return answer;
}

}  // namespace dllama::api::test
