#pragma once

#include <memory>

#include "api/answer-writer.hpp"

/// The writers behind makeAnswerWriter().
namespace dllama::api {

std::unique_ptr<AnswerWriter> makeChatWriter(const GenerationRequest& request, AnswerName name);
std::unique_ptr<AnswerWriter> makeCompletionWriter(const GenerationRequest& request, AnswerName name);
std::unique_ptr<AnswerWriter> makeResponsesWriter(const GenerationRequest& request, AnswerName name);
std::unique_ptr<AnswerWriter> makeMessagesWriter(const GenerationRequest& request, AnswerName name);

/// The id of a call: another one for each call of an answer.
std::string callId(const AnswerName& name, std::string_view mark, int choice, int index);

}  // namespace dllama::api
