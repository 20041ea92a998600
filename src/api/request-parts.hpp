#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "api/generation.hpp"
#include "api/json-fields.hpp"
#include "api/request-reader.hpp"

/// What the readers of several APIs share. Everything throws ApiError.
namespace dllama::api {

/// temperature, top_p, top_k, min_p, seed, penalties and logit_bias.
SamplingFields readSampling(const Fields& fields, const ReaderOptions& options);

/// A text or a list of texts; empty ones are dropped.
std::vector<std::string> readStops(const Fields& fields, std::string_view key);

/// The number of tokens at most.
std::optional<int> readTokenLimit(const Fields& fields, std::string_view key);

/// n, for that many prompts.
int readChoices(const Fields& fields, size_t nPrompts, const ReaderOptions& options);

/// stream and stream_options.include_usage.
void readStreaming(const Fields& fields, GenerationRequest& request);

/// One of `values`, else refused.
std::string readOneOf(const Fields& fields, std::string_view key, std::initializer_list<std::string_view> values);

/// Whether and how hard to think: chat_template_kwargs, enable_thinking, thinking {type, budget_tokens},
/// reasoning_effort, thinking_budget. What is said more precisely (in that order) wins.
void readThinking(const Fields& fields, ChatRequest& chat, GenerationRequest& request);
/// How hard to think: none, minimal, low, medium, high, xhigh or max.
std::string readEffort(const Fields& fields, std::string_view key);
/// "none" switches thinking off where nothing else has been said.
void applyEffort(const std::string& effort, ChatRequest& chat);

/// The text of a message's content: a text, or a list of parts of one of the types, joined as the chat format does.
std::string readContent(const PythonValue& content, const std::string& path, std::string_view role,
                        std::initializer_list<std::string_view> types, ChatFormat format);

/// A function's name, description and schema. `schemaKey` is parameters or input_schema.
FunctionTool readFunction(const Fields& function, std::string_view schemaKey);
/// The entry of OpenAI's "tools" that says the same, JSON text: what the chat templates know.
std::string openAiTool(const Fields& function, std::string_view schemaKey);
/// Refuses two functions of one name, and too many.
void checkFunctions(const std::vector<FunctionTool>& functions, const Items& tools);
/// The function must be called. Refuses a name that is not offered.
void chooseFunction(const std::string& name, std::string_view path, ToolUse& tools);
/// A call must be made. Refuses a request without functions.
void requireCall(std::string_view path, ToolUse& tools);
/// OpenAI's tool_choice and parallel_tool_calls, with the functions already read: none, auto, required, {type:
/// function} or {type: allowed_tools}, the names inside an object "function" or flat.
void readToolChoice(const Fields& fields, ToolUse& use);

/// {type: text | json_object | json_schema}; `schemaAt` is where name, schema and strict of json_schema stand.
ResponseFormat readFormat(const Fields& format, const std::optional<Fields>& schemaAt);

PythonValue pythonText(std::string text);
PythonValue pythonObject(std::vector<PythonValue::Member> members);

}  // namespace dllama::api
