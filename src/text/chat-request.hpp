#pragma once

#include <string_view>

#include "text/chat-format.hpp"
#include "text/python-json.hpp"

namespace dllama {

/// A request as clients send it (OpenAI's POST /v1/chat/completions): messages, tools, add_generation_prompt,
/// enable_thinking, reasoning_effort, chat_template_kwargs; other fields are left to others. Content is a text, null or
/// a list of text parts; arguments of calls are a JSON text or an object; role developer is system. Throws ConfigError,
/// with a text for the client, where a field is of the wrong type or a part is no text.
ChatRequest readChatRequest(ChatFormat format, const PythonValue& request);

}  // namespace dllama
