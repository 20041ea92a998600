#include "api/api-error.hpp"
#include "api/request-reader.hpp"

namespace dllama::api {

GenerationRequest readGeneration(Dialect dialect, std::string_view body, const ReaderOptions& options) {
    switch (dialect) {
        case Dialect::Chat:
            return readChatCompletion(body, options);
        case Dialect::Completion:
            return readCompletion(body, options);
        case Dialect::Responses:
            return readResponsesRequest(body, options);
        case Dialect::Messages:
            return readMessagesRequest(body, options);
    }
    throw ApiError(ErrorKind::Internal, "", "no such dialect");
}

RenderedChat renderPrompt(ChatFormat format, const GenerationRequest& request, const ChatRequest& chat) {
    try {
        RenderedChat rendered = renderChat(format, chat);
        if (!request.answerBegin.empty()) rendered.segments.push_back({request.answerBegin});
        return rendered;
    } catch (const ConfigError& error) {
        throw invalidRequest("messages", "messages: {}", error.what());
    }
}

}  // namespace dllama::api
