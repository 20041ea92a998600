#include <algorithm>
#include <cerrno>
#include <iostream>
#include <random>

#include "app/interrupt.hpp"
#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "base/printable.hpp"
#include "text/chat-format.hpp"

namespace dllama {

namespace {

/// A line from the terminal, of any length; nothing at its end. Ctrl-C at the prompt clears the line.
std::optional<std::string> readLine(const char* prompt, Interrupt& interrupt) {
    for (;;) {
        fmt::print("{}", prompt);
        std::fflush(stdout);
        std::string line;
        if (std::getline(std::cin, line)) return line;
        if (!interrupt.raised()) return std::nullopt;
        fmt::print("\n(Ctrl-D ends the chat)\n");
        interrupt.clear();
        std::cin.clear();
    }
}

class Chat {
  public:
    Chat(const ChatOptions& options, Session& session)
        : options_(options),
          session_(session),
          choice_(options.chatFormat.empty() ? chooseChatFormat(session.tokenizer().file())
                                             : ChatChoice{chatFormatByName(options.chatFormat)}),
          format_(choice_.format),
          stops_(chatStops(format_, session.tokenizer())) {
        for (int id : session.stopTokens())
            if (std::find(stops_.ids.begin(), stops_.ids.end(), id) == stops_.ids.end()) stops_.ids.push_back(id);
        sampling_ = options.sampling;
        if (!options.seedGiven) sampling_.seed = std::random_device{}();
    }

    void printStart() const {
        if (format_ == ChatFormat::None && !choice_.reason.empty())
            fmt::print("⚠️ {}: the model continues your text (--chat-template names a format)\n", choice_.reason);
        fmt::print("⭐ Chat template: {}\n", chatFormatName(format_));
        for (int id : stops_.ids) fmt::print("🛑 Stop: {}\n", printable(session_.tokenizer().piece(id)));
    }

    void setSystem(const std::string& text) {
        if (!text.empty()) messages_.push_back({.role = "system", .content = text});
    }

    /// One turn. Returns false when the context is full.
    bool answer(const std::string& question, Interrupt& interrupt) {
        messages_.push_back({.role = "user", .content = question});
        ChatRequest request{.messages = messages_};
        if (options_.noThink) request.enableThinking = false;
        const RenderedChat rendered = renderChat(format_, request);
        // Without a chat format a first text begins as the tokenizer says a text begins.
        std::vector<int> tokens = format_ == ChatFormat::None
                                      ? session_.tokenizer().encode(rendered.text(), SpecialTokens::Parse, true)
                                      : session_.tokenizer().encode(rendered.segments);
        Engine& engine = session_.engine();
        if (tokens.empty()) return true;
        if (static_cast<int>(tokens.size()) >= engine.maxPositions()) {
            fmt::print("(end of context)\n");
            return false;
        }
        sampling_.seed++;
        int nTokens = static_cast<int>(tokens.size());
        const int id = engine.submit({std::move(tokens), sampling_, {options_.maxTokens, stops_.ids}});
        const std::string text = stream(id, interrupt, rendered.endsInsideThink, nTokens);
        remember(text, rendered.endsInsideThink);
        if (nTokens >= engine.maxPositions()) {
            fmt::print("(end of context)\n");
            return false;
        }
        return true;
    }

  private:
    /// Prints the answer as it comes, and counts its tokens; Ctrl-C ends it.
    std::string stream(int request, Interrupt& interrupt, bool insideThink, int& nTokens) {
        Engine& engine = session_.engine();
        StreamDecoder decoder(session_.tokenizer());
        std::string text;
        bool started = !answersBeginWithWhiteSpace(format_);
        const auto show = [&](const std::string& piece) {
            text += piece;
            std::string shown = piece;
            if (!started) {
                shown.erase(0, shown.find_first_not_of(" \n"));
                started = !shown.empty();
            }
            fmt::print("{}", shown);
            flushOutput();
        };
        if (insideThink) fmt::print("<think>");
        interrupt.clear();
        while (engine.running()) {
            try {
                for (const TokenEvent& event : engine.step().events) {
                    nTokens++;
                    if (event.finish != Finish::StopToken) show(decoder.push(event.token));
                }
            } catch (const Interrupted&) {
                // In the middle of waiting for a lost worker; the next question tries again.
            }
            if (!interrupt.raised()) continue;
            engine.cancel(request);
            fmt::print(" 🛑");
            interrupt.clear();
        }
        show(decoder.flush());
        fmt::print("\n");
        return text;
    }

    /// The answer as a message: what was thought apart from what was said.
    void remember(std::string text, bool insideThink) {
        ChatMessage message;
        message.role = "assistant";
        const size_t end = text.find("</think>");
        if (end != std::string::npos) {
            const size_t begin = text.find("<think>");
            const size_t from = begin == std::string::npos || begin > end ? 0 : begin + 7;
            message.reasoning = text.substr(from, end - from);
            text.erase(0, end + 8);
        } else if (insideThink) {
            message.reasoning = text;
            text.clear();
        }
        if (answersBeginWithWhiteSpace(format_)) text.erase(0, text.find_first_not_of(" \n"));
        message.content = text;
        messages_.push_back(message);
    }

    const ChatOptions& options_;
    Session& session_;
    ChatChoice choice_;
    ChatFormat format_;
    ChatStops stops_;
    SamplingParams sampling_;
    std::vector<ChatMessage> messages_;
};

}  // namespace

int runChat(const ChatOptions& options) {
    checkSamplingParams(options.sampling);
    Session session(options.model, {});
    Chat chat(options, session);
    chat.printStart();
    Interrupt interrupt;
    if (!options.system.empty()) {
        chat.setSystem(options.system);
    } else {
        const std::optional<std::string> system = readLine("💻 System prompt (optional): ", interrupt);
        if (!system) return 0;
        chat.setSystem(*system);
    }
    while (const std::optional<std::string> question = readLine("\n👱 User\n> ", interrupt)) {
        if (question->empty()) continue;
        fmt::print("\n🤖 Assistant\n");
        if (!chat.answer(*question, interrupt)) return 0;
    }
    fmt::print("\n");
    return 0;
}

}  // namespace dllama
