#include "api/answer-writer.hpp"

#include "api/writers.hpp"

namespace dllama::api {

std::unique_ptr<AnswerWriter> makeAnswerWriter(const GenerationRequest& request, AnswerName name) {
    switch (request.dialect) {
        case Dialect::Chat:
            return makeChatWriter(request, std::move(name));
        case Dialect::Completion:
            return makeCompletionWriter(request, std::move(name));
        case Dialect::Responses:
            return makeResponsesWriter(request, std::move(name));
        case Dialect::Messages:
            return makeMessagesWriter(request, std::move(name));
    }
    return nullptr;
}

std::string_view answerContentType(const GenerationRequest& request) {
    return request.stream ? "text/event-stream" : "application/json";
}

std::string callId(const AnswerName& name, std::string_view mark, int choice, int index) {
    if (!name.shortCallIds) return fmt::format("{}{}{:02}{:02}", mark, name.id, choice, index);
    // FNV-1a of all that makes it different, in 52 bits: nine digits of base 36 hold no more than 46 of them.
    uint64_t hash = 14695981039346656037ull;
    for (char c : fmt::format("{} {} {}", name.id, choice, index))
        hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    std::string id;
    for (int i = 0; i < 9; i++, hash /= 36) id += "0123456789abcdefghijklmnopqrstuvwxyz"[hash % 36];
    return id;
}

}  // namespace dllama::api
