#include "api/json-output.hpp"
#include "api/writers.hpp"
#include "text/utf8.hpp"

namespace dllama::api {

namespace {

/// A token as a key or an entry of the older form of log probabilities, which has no bytes beside the text.
std::string tokenText(const std::string& token) {
    if (isValidUtf8(token)) return token;
    std::string text = "bytes:";
    for (char c : token) text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    return text;
}

int nCharacters(std::string_view text) {
    int n = 0;
    for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    return n;
}

struct Choice {
    std::string text;
    std::vector<TokenLogprobs> logprobs;
    int offset = 0;  // characters of the tokens so far
    std::string finishReason;
};

class CompletionWriter final : public AnswerWriter {
  public:
    CompletionWriter(const GenerationRequest& request, AnswerName name)
        : name_(std::move(name)),
          stream_(request.stream),
          includeUsage_(request.includeUsage),
          logprobs_(request.logprobs),
          choices_(static_cast<size_t>(request.nChoices())) {}

    std::string begin(const Usage&) override { return ""; }

    std::string add(const Delta& delta) override { return take(delta.choice, delta.part.text, delta.logprobs); }

    std::string end(const ChoiceEnd& end) override {
        const bool cutOff = end.reason == EndReason::MaxTokens || end.reason == EndReason::Context;
        choices_.at(static_cast<size_t>(end.choice)).finishReason = cutOff ? "length" : "stop";
        return take(end.choice, "", end.logprobs);
    }

    std::string finish(const Usage& usage, const Timings& timings) override {
        Json answer = frame();
        answer["choices"] = Json::array();
        if (!stream_) {
            for (size_t i = 0; i < choices_.size(); i++) {
                Choice& choice = choices_[i];
                choice.offset = 0;
                answer["choices"].push_back(choiceJson(static_cast<int>(i), choice.text, choice.logprobs));
            }
        }
        answer["usage"] = usageJson(usage);
        answer["timings"] = timingsJson(usage, timings);
        if (!stream_) return dump(answer);
        return (includeUsage_ ? sseEvent(answer) : "") + "data: [DONE]\n\n";
    }

    std::string fail(const ApiError& error) override {
        return stream_ ? sseEvent(errorJson(Dialect::Completion, error)) : errorBody(Dialect::Completion, error);
    }

  private:
    Json frame() const {
        return {{"id", "cmpl-" + name_.id},
                {"object", "text_completion"},
                {"created", name_.created},
                {"model", name_.model}};
    }

    std::string take(int index, const std::string& text, const std::vector<TokenLogprobs>& logprobs) {
        Choice& choice = choices_.at(static_cast<size_t>(index));
        if (!stream_) {
            choice.text += text;
            choice.logprobs.insert(choice.logprobs.end(), logprobs.begin(), logprobs.end());
            return "";
        }
        Json event = frame();
        event["choices"] = Json::array({choiceJson(index, text, logprobs)});
        if (includeUsage_) event["usage"] = nullptr;
        return sseEvent(event);
    }

    Json choiceJson(int index, const std::string& text, const std::vector<TokenLogprobs>& logprobs) {
        Choice& choice = choices_[static_cast<size_t>(index)];
        Json result = {{"text", text}, {"index", index}};
        result["logprobs"] = logprobs_ ? logprobsOf(logprobs, choice) : Json();
        result["finish_reason"] = choice.finishReason.empty() ? Json() : Json(choice.finishReason);
        return result;
    }

    static Json logprobsOf(const std::vector<TokenLogprobs>& logprobs, Choice& choice) {
        Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
        for (const TokenLogprobs& entry : logprobs) {
            tokens.push_back(tokenText(entry.token.token));
            values.push_back(entry.token.logprob);
            Json top = Json::object();
            for (const TokenLogprob& other : entry.top) top[tokenText(other.token)] = other.logprob;
            tops.push_back(std::move(top));
            offsets.push_back(choice.offset);
            choice.offset += nCharacters(entry.token.token);
        }
        return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
    }

    AnswerName name_;
    bool stream_, includeUsage_, logprobs_;
    std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<AnswerWriter> makeCompletionWriter(const GenerationRequest& request, AnswerName name) {
    return std::make_unique<CompletionWriter>(request, std::move(name));
}

}  // namespace dllama::api
