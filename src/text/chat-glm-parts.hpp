#pragma once

#include "text/chat-writer.hpp"

/// What the templates of GLM-4.5 to 5.3 have in common.
namespace dllama::chat {

inline constexpr std::string_view kGlmToolsBegin =
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n";
inline constexpr std::string_view kGlmToolsEnd =
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n";
inline constexpr std::string_view kGlmCallOnOneLine =
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>";

/// A call of a past turn. `lineFeed` is what stands between its parts: "\n" or nothing.
void writeGlmCall(const ToolCall& call, std::string_view lineFeed, Writer& writer);

}  // namespace dllama::chat
