#include "text/chat-writer.hpp"

/// ChatGLM-6B, ChatGLM2-6B (chat() in their modeling_chatglm.py) and ChatGLM3-6B (build_chat_input in its
/// tokenization_chatglm.py).
namespace dllama::chat {
namespace {

/// A question with its answer; the last may have none yet.
struct Round {
    std::string question;
    std::optional<std::string> answer;
};

std::vector<Round> roundsOf(const ChatRequest& request) {
    std::vector<Round> rounds;
    std::string before;  // the system text: the first two models know no such role
    for (const ChatMessage& message : request.messages) {
        if (message.role == "tool") throw ConfigError("this model knows no messages of role tool");
        if (message.role == "system") {
            before += message.content + "\n";
        } else if (message.role == "user") {
            rounds.push_back({before + message.content, std::nullopt});
            before.clear();
        } else if (rounds.empty()) {
            throw ConfigError("this model needs a user's message before the assistant's");
        } else {
            rounds.back().answer = rounds.back().answer.value_or("") + message.content;
        }
    }
    if (rounds.empty()) throw ConfigError("this model needs a user's message");
    return rounds;
}

void writeRounds(const std::vector<Round>& rounds, size_t firstNumber, std::string_view gap, Writer& writer) {
    for (size_t i = 0; i < rounds.size(); i++) {
        writer.text(fmt::format("[Round {}]{}问：{}{}答：", i + firstNumber, gap, rounds[i].question, gap));
        if (!rounds[i].answer) continue;
        writer.text(*rounds[i].answer);
        if (i + 1 < rounds.size()) writer.text(gap);
    }
}

RenderedChat renderChatglm3(const ChatRequest& request) {
    if (!request.tools.empty()) throw ConfigError("tools are not supported with ChatGLM3");
    Writer writer;
    writer.marker("[gMASK]").marker("sop");
    for (const ChatMessage& message : request.messages) {
        const std::string_view role = message.role == "tool" ? "observation" : std::string_view(message.role);
        // The line feed ends the marker's own line, which holds a function's name in a call.
        writer.marker(fmt::format("<|{}|>", role)).separate("\n").separate(message.content);
    }
    if (request.addGenerationPrompt) writer.marker("<|assistant|>");
    return std::move(writer.result);
}

}  // namespace

RenderedChat renderChatglm(ChatFormat format, const ChatRequest& request) {
    if (format == ChatFormat::Chatglm3) return renderChatglm3(request);
    const std::vector<Round> rounds = roundsOf(request);
    Writer writer;
    if (format == ChatFormat::Chatglm2) {
        writer.marker("[gMASK]").marker("sop");
        writeRounds(rounds, 1, "\n\n", writer);
        return std::move(writer.result);
    }
    if (rounds.size() == 1 && !rounds[0].answer) {
        writer.text(rounds[0].question);
    } else {
        writeRounds(rounds, 0, "\n", writer);
    }
    writer.marker("[gMASK]").marker("<sop>");
    return std::move(writer.result);
}

}  // namespace dllama::chat
