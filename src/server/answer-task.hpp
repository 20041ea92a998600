#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "api/answer-writer.hpp"
#include "server/choice-stream.hpp"
#include "server/engine-thread.hpp"
#include "server/http.hpp"
#include "server/prepare.hpp"
#include "server/served-model.hpp"

namespace dllama {

/// One answer on its way from the engine to a client, all its choices together. In the thread of the server's sockets.
class AnswerTask : public std::enable_shared_from_this<AnswerTask> {
  public:
    using Clock = std::chrono::steady_clock;

    AnswerTask(PreparedRequest prepared, const ServedModel& model, std::shared_ptr<HttpExchange> exchange);

    /// Hands the request to the engine. `post` runs a function in this thread, from any thread. Throws ApiError if the
    /// engine refuses.
    ///
    /// Whoever owns the task keeps it until onOver() has been called: the engine's thread holds no part of it.
    void begin(EngineThread& engine, const std::function<void(std::function<void()>)>& post,
               std::optional<Clock::time_point> deadline);

    /// Called, in this thread, when nothing more will happen.
    void onOver(std::function<void()> told) { overTold_ = std::move(told); }

  private:
    struct Choice {
        ChoiceStream stream;
        uint64_t job = 0;
        bool ended = false;
        int nTokens = 0;
        std::vector<api::TokenLogprobs> logprobs = {};  // of tokens whose text has not been told yet
    };

    void told(int choice, const TokenEvent& event);
    void failed(const api::ApiError& error);
    api::TokenLogprobs named(const TokenEvent& event) const;
    void tell(int choice, std::vector<OutputDelta> parts);
    void endChoice(int choice, api::EndReason reason);
    void start();
    void write(std::string part);
    void cancel();
    void finish();
    void setOver();

    const PreparedRequest prepared_;
    const ServedModel& model_;
    const std::shared_ptr<HttpExchange> exchange_;
    const std::unique_ptr<api::AnswerWriter> writer_;
    EngineThread* engine_ = nullptr;
    std::vector<Choice> choices_;
    api::Usage usage_;
    std::string whole_;  // of an answer that is not streamed
    Clock::time_point begin_, firstToken_;
    bool started_ = false, over_ = false;
    std::function<void()> overTold_;
};

}  // namespace dllama
