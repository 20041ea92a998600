#pragma once

#include <string>
#include <vector>

#include "app/interrupt.hpp"
#include "app/options.hpp"
#include "app/session.hpp"
#include "text/chat-format.hpp"

namespace dllama {

/// A conversation with the model on a terminal: its messages, and answers as they come.
class Conversation {
  public:
    /// Both must outlive the conversation. Throws ConfigError for an unknown --chat-template.
    Conversation(const ChatOptions& options, Session& session);

    /// The format; with ChatFormat::None why there is none.
    const ChatChoice& format() const { return choice_; }
    const ChatStops& stops() const { return stops_; }

    /// Asks, prints the answer and remembers both. What does not fit the context is said and not remembered.
    void ask(const std::string& question, Interrupt& interrupt);
    /// Another answer to the last question.
    void answerAgain(Interrupt& interrupt);
    /// Forgets the messages, but not the system text.
    void clear();
    void setSystem(const std::string& text);
    void setThinking(bool on) { thinking_ = on; }
    /// Writes the messages as a request of the API. Throws FormatError naming the file.
    void save(const std::string& path) const;
    void printStats() const;

  private:
    ChatRequest request() const;
    bool answer(Interrupt& interrupt);
    /// Prints the answer as it comes and counts its tokens; Ctrl-C ends it.
    ChatMessage stream(int id, bool insideThink, Interrupt& interrupt);

    const ChatOptions& options_;
    Session& session_;
    ChatChoice choice_;
    ChatStops stops_;
    SamplingParams sampling_;
    std::optional<bool> thinking_;
    std::string system_;
    std::vector<ChatMessage> messages_;  // without the system text
    int nContext_ = 0;                   // tokens of prompt and answer
    int nAnswer_ = 0;
    double seconds_ = 0.0;
};

}  // namespace dllama
