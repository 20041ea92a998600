#include "app/conversation.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "text/chat-output.hpp"
#include "text/stop-detector.hpp"

namespace dllama {

namespace {

/// Prints deltas: thoughts dimmed on a terminal, between their marks elsewhere.
class AnswerPrinter {
  public:
    explicit AnswerPrinter(bool skipSpaces) : started_(!skipSpaces) {}

    void print(const std::vector<OutputDelta>& deltas) {
        for (const OutputDelta& delta : deltas) {
            if (delta.kind == OutputDelta::Kind::Reasoning) {
                openThought();
                fmt::print("{}", delta.text);
                continue;
            }
            closeThought();
            std::string shown = delta.text;
            if (!started_) shown.erase(0, std::min(shown.find_first_not_of(" \n"), shown.size()));
            started_ = started_ || !shown.empty();
            fmt::print("{}", shown);
        }
        flushOutput();
    }
    void finish() {
        closeThought();
        fmt::print("\n");
        flushOutput();
    }

  private:
    void openThought() {
        if (!inThought_) fmt::print("{}", dims_ ? "\033[2m" : "<think>\n");
        inThought_ = true;
    }
    void closeThought() {
        if (inThought_) fmt::print("{}", dims_ ? "\033[0m\n\n" : "\n</think>\n\n");
        inThought_ = false;
    }

    bool dims_ = isatty(STDOUT_FILENO) != 0;
    bool inThought_ = false;
    bool started_;
};

}  // namespace

Conversation::Conversation(const ChatOptions& options, Session& session)
    : options_(options),
      session_(session),
      choice_(options.chatFormat.empty() ? chooseChatFormat(session.tokenizer().file())
                                         : ChatChoice{chatFormatByName(options.chatFormat)}),
      stops_(chatStops(choice_.format, session.tokenizer())),
      sampling_(options.sampling) {
    for (int id : session.stopTokens())
        if (std::find(stops_.ids.begin(), stops_.ids.end(), id) == stops_.ids.end()) stops_.ids.push_back(id);
    if (!options.seedGiven) sampling_.seed = std::random_device{}();
    if (options.noThink) thinking_ = false;
}

void Conversation::ask(const std::string& question, Interrupt& interrupt) {
    messages_.push_back({.role = "user", .content = question});
    if (!answer(interrupt)) messages_.pop_back();
}

void Conversation::answerAgain(Interrupt& interrupt) {
    if (messages_.empty()) {
        fmt::print("(there is no question yet)\n");
        return;
    }
    const std::vector<ChatMessage> before = messages_;
    if (messages_.back().role == "assistant") messages_.pop_back();
    if (!answer(interrupt)) messages_ = before;
}

void Conversation::clear() {
    messages_.clear();
    nContext_ = 0;
}

void Conversation::setSystem(const std::string& text) {
    system_ = text;
}

ChatRequest Conversation::request() const {
    ChatRequest request{.messages = messages_};
    if (!system_.empty()) request.messages.insert(request.messages.begin(), {.role = "system", .content = system_});
    request.enableThinking = thinking_;
    return request;
}

bool Conversation::answer(Interrupt& interrupt) {
    RenderedChat rendered;
    try {
        rendered = renderChat(choice_.format, request());
    } catch (const ConfigError& error) {
        fmt::print("(the model's template refuses this: {})\n", error.what());
        return false;
    }
    // Without a chat format a first text begins as the tokenizer says a text begins.
    std::vector<int> tokens = choice_.format == ChatFormat::None
                                  ? session_.tokenizer().encode(rendered.text(), SpecialTokens::Never, true)
                                  : session_.tokenizer().encode(rendered.segments);
    Engine& engine = session_.engine();
    const int nTokens = static_cast<int>(tokens.size());
    if (tokens.empty()) return false;
    if (nTokens >= engine.maxPositions()) {
        fmt::print(
            "(this takes {} of {} tokens of context and is not sent: ask something shorter, begin anew with "
            "/clear, or start with a larger --max-seq-len)\n",
            nTokens, engine.maxPositions());
        return false;
    }
    sampling_.seed++;
    nContext_ = nTokens;
    const int id = engine.submit({std::move(tokens), sampling_, {options_.maxTokens, stops_.ids}});
    messages_.push_back(stream(id, rendered.endsInsideThink, interrupt));
    if (nContext_ >= engine.maxPositions())
        fmt::print(
            "(the context is full, {} of {} tokens: begin anew with /clear, or start with a larger "
            "--max-seq-len)\n",
            nContext_, engine.maxPositions());
    return true;
}

ChatMessage Conversation::stream(int id, bool insideThink, Interrupt& interrupt) {
    Engine& engine = session_.engine();
    StreamDecoder decoder(session_.tokenizer());
    decoder.keep(outputMarks(choice_.format));
    StopDetector stop(stops_.texts);
    ChatOutputParser parser(choice_.format, {}, insideThink);
    AnswerCollector collector;
    AnswerPrinter printer(answersBeginWithWhiteSpace(choice_.format));
    const auto show = [&](const std::vector<OutputDelta>& deltas) {
        collector.add(deltas);
        printer.print(deltas);
    };
    nAnswer_ = 0;
    const auto begin = std::chrono::steady_clock::now();
    bool cutOff = false;
    while (engine.running()) {
        try {
            for (const TokenEvent& event : engine.step().events) {
                nAnswer_++;
                cutOff = event.finish == Finish::Length;
                if (event.finish != Finish::StopToken) show(parser.push(stop.push(decoder.push(event.token))));
            }
        } catch (const Interrupted&) {
            // In the middle of waiting for a lost worker; the next question tries again.
        }
        if (stop.stopped() || parser.ended()) engine.cancel(id);
        if (!interrupt.raised()) continue;
        engine.cancel(id);
        cutOff = true;
        fmt::print(" 🛑");
        interrupt.clear();
    }
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    nContext_ += nAnswer_;
    show(parser.push(stop.push(decoder.flush()) + stop.flush()));
    show(parser.finish(cutOff));
    printer.finish();
    const ParsedAnswer answer = collector.answer(cutOff);
    std::string content = answer.content.value_or("");
    if (answersBeginWithWhiteSpace(choice_.format))
        content.erase(0, std::min(content.find_first_not_of(" \n"), content.size()));
    return {.role = "assistant", .content = std::move(content), .reasoning = answer.reasoning};
}

void Conversation::save(const std::string& path) const {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    for (const ChatMessage& message : request().messages) {
        nlohmann::ordered_json one = {{"role", message.role}, {"content", message.content}};
        if (message.reasoning) one["reasoning_content"] = *message.reasoning;
        messages.push_back(std::move(one));
    }
    const nlohmann::ordered_json document = {{"messages", std::move(messages)}};
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out << document.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    out.close();
    if (!out) throw FormatError("{}: cannot be written: {}", path, std::strerror(errno));
}

void Conversation::printStats() const {
    fmt::print("({} of {} tokens of context; the last answer: {} tokens in {:.1f} s, {:.1f} tokens/s)\n", nContext_,
               session_.engine().maxPositions(), nAnswer_, seconds_, seconds_ > 0.0 ? nAnswer_ / seconds_ : 0.0);
}

}  // namespace dllama
