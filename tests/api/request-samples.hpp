#pragma once

#include <string_view>
#include <vector>

#include "api/generation.hpp"

/// A request of each API with every field that its reader looks at: where mutations begin.
namespace dllama::api::test {

struct RequestSample {
    Dialect dialect;
    std::string_view body;
};

inline const std::vector<RequestSample> kRequestSamples = {
    {Dialect::Chat, R"({"model": "m", "messages": [{"role": "system", "content": "S"},
        {"role": "user", "name": "n", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": null, "reasoning_content": "R", "tool_calls": [{"id": "c1", "type": "function",
            "function": {"name": "light", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"}],
        "tools": [{"type": "function", "function": {"name": "light", "description": "d", "strict": true,
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "enum": [1, 2]}}}}}],
        "tool_choice": {"type": "function", "function": {"name": "light"}}, "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "max_tokens": 9, "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1,
        "seed": 7, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.5, "repeat_penalty": 1.1,
        "logit_bias": {"3": -100}, "n": 2, "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true},
        "logprobs": true, "top_logprobs": 3, "min_tokens": 1, "ignore_eos": false, "thinking_budget": 64,
        "chat_template_kwargs": {"enable_thinking": true, "clear_thinking": false, "builtin_tools": ["x"]},
        "enable_thinking": true, "thinking": {"type": "enabled", "budget_tokens": 5}, "reasoning_effort": "low"})"},
    {Dialect::Completion,
     R"({"model": "m", "prompt": ["a", [1, 2, 3]], "suffix": "", "max_tokens": 3, "n": 2, "echo": true,
        "logprobs": null, "stop": "x", "stream": false, "temperature": 0, "logit_bias": {"1": 5},
        "response_format": {"type": "json_object"}})"},
    {Dialect::Responses, R"({"model": "m", "instructions": "I", "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "R"}]},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "o"}],
        "tools": [{"type": "function", "name": "now", "parameters": {"type": "object"}, "strict": true}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true}},
        "reasoning": {"effort": "low"}, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
        "max_output_tokens": 5, "metadata": {"a": "b"}, "stream": true, "truncation": "disabled"})"},
    {Dialect::Messages, R"({"model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "S"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "T"}, {"type": "tool_use", "id": "t",
            "name": "now", "input": {"a": [1]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r"}]}]},
        {"role": "assistant", "content": "{"}],
        "tools": [{"name": "now", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "stop_sequences": ["x"], "stream": true,
        "thinking": {"type": "enabled", "budget_tokens": 5}, "temperature": 0.5, "top_k": 5,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}})"},
};

}  // namespace dllama::api::test
