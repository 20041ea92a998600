#include "server/answer-task.hpp"

#include <random>

namespace dllama {

namespace {

/// 24 letters and digits.
std::string newId() {
    static constexpr std::string_view kSigns = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    static std::mt19937_64 random{std::random_device{}()};
    std::string id;
    for (int i = 0; i < 24; i++) id += kSigns[random() % kSigns.size()];
    return id;
}

api::AnswerName answerName(const ServedModel& model) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const ChatFormat f = model.format;
    return {newId(), model.names[0], std::chrono::duration_cast<std::chrono::seconds>(now).count(),
            f == ChatFormat::MistralV1Old || f == ChatFormat::MistralV1 || f == ChatFormat::MistralV3};
}

}  // namespace

AnswerTask::AnswerTask(PreparedRequest prepared, const ServedModel& model, std::shared_ptr<HttpExchange> exchange)
    : prepared_(std::move(prepared)),
      model_(model),
      exchange_(std::move(exchange)),
      writer_(api::makeAnswerWriter(prepared_.request, answerName(model))),
      begin_(Clock::now()) {
    usage_.promptTokens = prepared_.nPromptTokens;
    for (int i = 0; i < prepared_.request.nChoices(); i++)
        choices_.push_back(
            {ChoiceStream(model.tokenizer, prepared_.prompts[static_cast<size_t>(i / prepared_.request.n)].rules)});
}

void AnswerTask::begin(EngineThread& engine, const std::function<void(std::function<void()>)>& post,
                       std::optional<Clock::time_point> deadline) {
    engine_ = &engine;
    if (prepared_.request.maxTokens == 0) {
        start();
        for (size_t i = 0; i < choices_.size(); i++) endChoice(static_cast<int>(i), api::EndReason::MaxTokens);
        return;
    }
    std::vector<EngineJob> jobs;
    for (int i = 0; i < static_cast<int>(choices_.size()); i++) {
        EngineJob job;
        job.request = prepared_.engineRequest(model_, i);
        job.told = [weak = weak_from_this(), post, i](const TokenEvent& event) {
            post([weak, i, event] {
                if (const auto self = weak.lock()) self->told(i, event);
            });
        };
        job.failed = [weak = weak_from_this(), post](const api::ApiError& error) {
            post([weak, error] {
                if (const auto self = weak.lock()) self->failed(error);
            });
        };
        job.deadline = deadline;
        jobs.push_back(std::move(job));
    }
    const std::vector<uint64_t> ids = engine.submit(std::move(jobs));
    for (size_t i = 0; i < ids.size(); i++) choices_[i].job = ids[i];
    exchange_->onGone([weak = weak_from_this()] {
        if (const auto self = weak.lock()) self->cancel();
    });
}

void AnswerTask::told(int index, const TokenEvent& event) {
    Choice& choice = choices_[static_cast<size_t>(index)];
    if (over_ || choice.ended) return;
    if (!started_) {
        firstToken_ = Clock::now();
        usage_.cachedTokens = event.nCachedPrompt;
        start();
    }
    choice.nTokens++;
    const bool cutOff = event.finish == Finish::Length;
    if (event.logprobs && event.finish != Finish::StopToken) choice.logprobs.push_back(named(event));
    if (event.finish != Finish::StopToken) tell(index, choice.stream.push(event.token));
    if (event.finish == Finish::None && !choice.stream.ended()) return;
    if (event.finish == Finish::None) engine_->cancel(choice.job);
    tell(index, choice.stream.finish(cutOff && !choice.stream.ended()));
    const bool isLimit = prepared_.request.maxTokens && choice.nTokens >= *prepared_.request.maxTokens;
    endChoice(index, choice.stream.stopText()           ? api::EndReason::StopText
                     : !cutOff || choice.stream.ended() ? api::EndReason::Stop
                     : isLimit                          ? api::EndReason::MaxTokens
                                                        : api::EndReason::Context);
}

api::TokenLogprobs AnswerTask::named(const TokenEvent& event) const {
    const auto pieceOf = [&](int token) { return std::string(model_.tokenizer.piece(token)); };
    api::TokenLogprobs named{{pieceOf(event.token), event.logprobs->ofToken}};
    for (const auto& [token, logprob] : event.logprobs->top) named.top.push_back({pieceOf(token), logprob});
    return named;
}

void AnswerTask::tell(int index, std::vector<OutputDelta> parts) {
    Choice& choice = choices_[static_cast<size_t>(index)];
    for (OutputDelta& part : parts) write(writer_->add({index, std::move(part), std::exchange(choice.logprobs, {})}));
}

void AnswerTask::endChoice(int index, api::EndReason reason) {
    Choice& choice = choices_[static_cast<size_t>(index)];
    choice.ended = true;
    usage_.completionTokens += choice.nTokens;
    usage_.reasoningTokens += choice.stream.nReasoningTokens();
    write(writer_->end({index, reason, choice.stream.stopText().value_or(""), std::exchange(choice.logprobs, {})}));
    for (const Choice& other : choices_)
        if (!other.ended) return;
    finish();
}

void AnswerTask::start() {
    started_ = true;
    std::string head = writer_->begin(usage_);
    if (prepared_.request.stream)
        exchange_->start({200,
                          std::string(api::answerContentType(prepared_.request)),
                          std::move(head),
                          {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
    else
        whole_ += head;
}

void AnswerTask::write(std::string part) {
    if (prepared_.request.stream)
        exchange_->write(std::move(part));
    else
        whole_ += part;
}

void AnswerTask::setOver() {
    over_ = true;
    if (overTold_) std::exchange(overTold_, {})();
}

void AnswerTask::finish() {
    setOver();
    const Clock::time_point now = Clock::now();
    if (firstToken_ == Clock::time_point()) firstToken_ = now;
    const api::Timings timings{std::chrono::duration<double>(firstToken_ - begin_).count(),
                               std::chrono::duration<double>(now - firstToken_).count()};
    write(writer_->finish(usage_, timings));
    if (prepared_.request.stream)
        exchange_->end();
    else
        exchange_->send({200, std::string(api::answerContentType(prepared_.request)), std::move(whole_)});
}

void AnswerTask::failed(const api::ApiError& error) {
    if (over_) return;
    cancel();
    if (started_ && prepared_.request.stream) {
        exchange_->write(writer_->fail(error));
        exchange_->end();
    } else {
        exchange_->send({error.status(), "application/json", api::errorBody(prepared_.request.dialect, error)});
    }
}

void AnswerTask::cancel() {
    if (over_) return;
    setOver();
    for (const Choice& choice : choices_)
        if (!choice.ended) engine_->cancel(choice.job);
}

}  // namespace dllama
