#include "api/json-output.hpp"
#include "api/writers.hpp"

namespace dllama::api {

namespace {

using Kind = OutputDelta::Kind;

struct Choice {
    std::string reasoning, content;
    std::vector<ToolCall> calls;
    std::vector<TokenLogprobs> logprobs;
    std::string finishReason;
    bool called = false;
};

const char* finishReason(EndReason reason, bool called) {
    const bool cutOff = reason == EndReason::MaxTokens || reason == EndReason::Context;
    return cutOff ? "length" : called ? "tool_calls" : "stop";
}

class ChatWriter final : public AnswerWriter {
  public:
    ChatWriter(const GenerationRequest& request, AnswerName name)
        : name_(std::move(name)),
          stream_(request.stream),
          includeUsage_(request.includeUsage),
          logprobs_(request.logprobs),
          choices_(static_cast<size_t>(request.nChoices())) {}

    std::string begin(const Usage&) override {
        std::string out;
        if (!stream_) return out;
        for (size_t i = 0; i < choices_.size(); i++)
            out += chunk(static_cast<int>(i), {{"role", "assistant"}, {"content", ""}}, {});
        return out;
    }

    std::string add(const Delta& delta) override {
        Choice& choice = choices_.at(static_cast<size_t>(delta.choice));
        if (!stream_) {
            collect(delta, choice);
            return "";
        }
        const OutputDelta& part = delta.part;
        if (part.kind == Kind::Reasoning)
            return chunk(delta.choice, {{"reasoning_content", part.text}}, delta.logprobs);
        if (part.kind == Kind::Content) return chunk(delta.choice, {{"content", part.text}}, delta.logprobs);
        return callChunks(delta, choice);
    }

    std::string end(const ChoiceEnd& end) override {
        Choice& choice = choices_.at(static_cast<size_t>(end.choice));
        choice.finishReason = finishReason(end.reason, choice.called);
        if (stream_) return chunk(end.choice, Json::object(), end.logprobs, choice.finishReason);
        choice.logprobs.insert(choice.logprobs.end(), end.logprobs.begin(), end.logprobs.end());
        return "";
    }

    std::string finish(const Usage& usage, const Timings& timings) override {
        if (!stream_) return dump(whole(usage, timings));
        std::string out;
        if (includeUsage_) {
            Json last = frame("chat.completion.chunk");
            last["choices"] = Json::array();
            last["usage"] = usageJson(usage);
            last["timings"] = timingsJson(usage, timings);
            out += sseEvent(last);
        }
        return out + "data: [DONE]\n\n";
    }

    std::string fail(const ApiError& error) override {
        return stream_ ? sseEvent(errorJson(Dialect::Chat, error)) : errorBody(Dialect::Chat, error);
    }

  private:
    Json frame(const char* object) const {
        return {{"id", "chatcmpl-" + name_.id}, {"object", object}, {"created", name_.created}, {"model", name_.model}};
    }

    Json logprobsOf(const std::vector<TokenLogprobs>& logprobs) const {
        if (!logprobs_) return nullptr;
        return {{"content", logprobsJson(logprobs)}, {"refusal", nullptr}};
    }

    std::string chunk(int choice, Json delta, const std::vector<TokenLogprobs>& logprobs,
                      const std::string& reason = {}) const {
        Json inner = {{"index", choice}, {"delta", std::move(delta)}};
        inner["logprobs"] = logprobs.empty() ? Json() : logprobsOf(logprobs);
        inner["finish_reason"] = reason.empty() ? Json() : Json(reason);
        Json event = frame("chat.completion.chunk");
        event["choices"] = Json::array({std::move(inner)});
        if (includeUsage_) event["usage"] = nullptr;
        return sseEvent(event);
    }

    std::string callChunks(const Delta& delta, Choice& choice) const {
        const OutputDelta& part = delta.part;
        std::string out;
        const bool first = !part.name.empty();
        choice.called = true;
        if (first) {
            const Json call = {{"index", part.index},
                               {"id", callId(name_, "call_", delta.choice, part.index)},
                               {"type", "function"},
                               {"function", {{"name", part.name}, {"arguments", ""}}}};
            out += chunk(delta.choice, {{"tool_calls", Json::array({call})}}, delta.logprobs);
        }
        if (part.text.empty()) return out;
        const Json more = {{"index", part.index}, {"function", {{"arguments", part.text}}}};
        out += chunk(delta.choice, {{"tool_calls", Json::array({more})}},
                     first ? std::vector<TokenLogprobs>() : delta.logprobs);
        return out;
    }

    void collect(const Delta& delta, Choice& choice) const {
        const OutputDelta& part = delta.part;
        choice.logprobs.insert(choice.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
        switch (part.kind) {
            case Kind::Reasoning:
                choice.reasoning += part.text;
                break;
            case Kind::Content:
                choice.content += part.text;
                break;
            case Kind::Call:
                choice.called = true;
                if (!part.name.empty())
                    choice.calls.push_back({part.name, part.text, callId(name_, "call_", delta.choice, part.index)});
                else if (!choice.calls.empty())
                    choice.calls.back().arguments += part.text;
                break;
        }
    }

    Json messageOf(const Choice& choice) const {
        Json message = {{"role", "assistant"}};
        message["content"] = choice.content.empty() && choice.called ? Json() : Json(choice.content);
        message["refusal"] = nullptr;
        if (!choice.reasoning.empty()) message["reasoning_content"] = choice.reasoning;
        if (choice.calls.empty()) return message;
        message["tool_calls"] = Json::array();
        for (const ToolCall& call : choice.calls) {
            message["tool_calls"].push_back({{"id", call.id},
                                             {"type", "function"},
                                             {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
        }
        return message;
    }

    Json whole(const Usage& usage, const Timings& timings) const {
        Json answer = frame("chat.completion");
        answer["choices"] = Json::array();
        for (size_t i = 0; i < choices_.size(); i++) {
            Json choice = {{"index", i}, {"message", messageOf(choices_[i])}};
            choice["logprobs"] = logprobsOf(choices_[i].logprobs);
            choice["finish_reason"] = choices_[i].finishReason;
            answer["choices"].push_back(std::move(choice));
        }
        answer["usage"] = usageJson(usage);
        answer["timings"] = timingsJson(usage, timings);
        return answer;
    }

    AnswerName name_;
    bool stream_, includeUsage_, logprobs_;
    std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<AnswerWriter> makeChatWriter(const GenerationRequest& request, AnswerName name) {
    return std::make_unique<ChatWriter>(request, std::move(name));
}

}  // namespace dllama::api
