#include <gtest/gtest.h>

#include "api-support.hpp"

namespace dllama::api {
namespace {

using namespace test;

const char* const kUser = R"("messages": [{"role": "user", "content": "Hi"}])";

GenerationRequest read(const std::string& fields) {
    return readChatCompletion(fmt::format("{{{}{}{}}}", kUser, fields.empty() ? "" : ", ", fields), kOptions);
}

const ChatRequest& chatOf(const GenerationRequest& request) {
    return std::get<ChatRequest>(request.prompts.at(0));
}

const char* const kTools =
    R"("tools": [{"type": "function", "function": {"name": "light", "description": "d", "strict": true,
                  "parameters": {"type": "object", "properties": {"z": {"minimum": 1e-7}, "a": {}}}}},
                 {"type": "function", "function": {"name": "now"}}])";

TEST(ChatReader, TakesEveryField) {
    const GenerationRequest request = read(R"("model": "m", "max_tokens": 9, "max_completion_tokens": 5,
        "temperature": 0.5, "top_p": 0.25, "top_k": 20, "min_p": 0.125, "seed": 7, "presence_penalty": -1,
        "frequency_penalty": 0.5, "repeat_penalty": 1.5, "logit_bias": {"3": -100, "999": 1.5}, "n": 2,
        "stop": ["a", "", "b"], "stream": true, "stream_options": {"include_usage": true, "include_obfuscation": false},
        "logprobs": true, "top_logprobs": 3, "min_tokens": 2, "ignore_eos": true, "thinking_budget": 64)");
    EXPECT_EQ(request.dialect, Dialect::Chat);
    EXPECT_EQ(request.model, "m");
    EXPECT_EQ(request.maxTokens, 5);
    EXPECT_EQ(request.sampling.temperature, 0.5f);
    EXPECT_EQ(request.sampling.topP, 0.25f);
    EXPECT_EQ(request.sampling.topK, 20);
    EXPECT_EQ(request.sampling.minP, 0.125f);
    EXPECT_EQ(request.sampling.seed, 7u);
    EXPECT_EQ(request.sampling.presencePenalty, -1.0f);
    EXPECT_EQ(request.sampling.frequencyPenalty, 0.5f);
    EXPECT_EQ(request.sampling.repetitionPenalty, 1.5f);
    EXPECT_EQ(request.sampling.logitBias, (std::vector<std::pair<int, float>>{{3, -100.0f}, {999, 1.5f}}));
    EXPECT_EQ(request.n, 2);
    EXPECT_EQ(request.stop, (std::vector<std::string>{"a", "b"}));
    EXPECT_TRUE(request.stream);
    EXPECT_TRUE(request.includeUsage);
    EXPECT_TRUE(request.logprobs);
    EXPECT_EQ(request.topLogprobs, 3);
    EXPECT_EQ(request.minTokens, 2);
    EXPECT_TRUE(request.ignoreEos);
    EXPECT_EQ(request.reasoningBudget, 64);
}

TEST(ChatReader, NullAndMissingAreTheSame) {
    for (const char* fields :
         {"", R"("model": null, "max_tokens": null, "temperature": null, "top_p": null, "stop": null,
        "tools": null, "tool_choice": null, "n": null, "stream": null, "stream_options": null, "logit_bias": null,
        "seed": null, "response_format": null, "logprobs": null, "top_logprobs": null, "functions": null)"}) {
        const GenerationRequest request = read(fields);
        EXPECT_EQ(request.model, "");
        EXPECT_FALSE(request.maxTokens || request.sampling.temperature || request.sampling.topP ||
                     request.sampling.seed);
        EXPECT_TRUE(request.stop.empty() && request.tools.functions.empty() && request.sampling.logitBias.empty());
        EXPECT_EQ(request.nChoices(), 1);
        EXPECT_FALSE(request.stream || request.includeUsage || request.logprobs);
        EXPECT_EQ(request.format.kind, ResponseFormat::Kind::Text);
    }
}

TEST(ChatReader, IgnoresWhatItDoesNotKnow) {
    EXPECT_NO_THROW(read(R"("x_unknown": {"deep": [1, null]}, "store": true, "metadata": {}, "user": "u", "stop": [],
        "service_tier": "auto", "id_slot": -1, "prediction": {"type": "content"}, "mirostat": 2, "logit_bias": {})"));
}

TEST(ChatReader, SpecialValuesOfSampling) {
    EXPECT_GT(*read(R"("top_p": 0)").sampling.topP, 0.0f);
    EXPECT_EQ(read(R"("top_k": -1)").sampling.topK, 0);
    EXPECT_FALSE(read(R"("seed": -1)").sampling.seed.has_value());
    EXPECT_EQ(read(R"("max_tokens": 16.0)").maxTokens, 16);
    EXPECT_EQ(read(R"("stop": "x")").stop, std::vector<std::string>{"x"});
}

TEST(ChatReader, Messages) {
    const GenerationRequest request = readChatCompletion(R"({"messages": [
        {"role": "developer", "content": "D"},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "reasoning_content": "R", "refusal": null,
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {"role": "function", "name": "f", "content": "old"}]})",
                                                         kOptions);
    const auto& messages = chatOf(request).messages;
    ASSERT_EQ(messages.size(), 5u);
    EXPECT_EQ(messages[0].role, "system");
    EXPECT_EQ(messages[1].content, joinContentParts(ChatFormat::Glm45, "user", std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(messages[2].reasoning, "R");
    EXPECT_EQ(messages[2].toolCalls.at(0).name, "f");
    EXPECT_EQ(messages[3].toolCallId, "c1");
    EXPECT_EQ(messages[4].role, "tool");
}

TEST(ChatReader, Thinking) {
    EXPECT_FALSE(chatOf(read("")).enableThinking.has_value());
    EXPECT_EQ(chatOf(read(R"("chat_template_kwargs": {"enable_thinking": false})")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("enable_thinking": false)")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("thinking": {"type": "disabled"})")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("thinking": {"type": "enabled", "budget_tokens": 99})")).enableThinking, true);
    EXPECT_EQ(read(R"("thinking": {"type": "enabled", "budget_tokens": 99})").reasoningBudget, 99);
    EXPECT_EQ(chatOf(read(R"("reasoning_effort": "none")")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("reasoning_effort": "low")")).reasoningEffort, "low");
    // What is said more precisely wins.
    EXPECT_EQ(chatOf(read(R"("chat_template_kwargs": {"enable_thinking": true}, "enable_thinking": false,
                              "thinking": {"type": "disabled"}, "reasoning_effort": "none")"))
                  .enableThinking,
              true);
    EXPECT_EQ(chatOf(read(R"("chat_template_kwargs": {"enable_thinking": true})")).messages.at(0).content, "Hi");
}

TEST(ChatReader, Tools) {
    const GenerationRequest request = read(kTools);
    ASSERT_EQ(request.tools.functions.size(), 2u);
    EXPECT_EQ(request.tools.functions[0].name, "light");
    EXPECT_TRUE(request.tools.functions[0].strict);
    // The order of keys and the numbers stay as the templates print them.
    EXPECT_EQ(request.tools.functions[0].parameters,
              R"({"type": "object", "properties": {"z": {"minimum": 1e-07}, "a": {}}})");
    EXPECT_EQ(request.tools.functions[1].parameters, "");
    EXPECT_EQ(chatOf(request).tools.at(1), R"({"type": "function", "function": {"name": "now"}})");
    EXPECT_EQ(request.tools.choice, ToolUse::Choice::Auto);
    EXPECT_TRUE(request.tools.parallel);
}

TEST(ChatReader, ToolChoice) {
    const auto use = [](const std::string& choice) { return read(kTools + (", " + choice)).tools; };
    EXPECT_EQ(use(R"("tool_choice": "auto")").choice, ToolUse::Choice::Auto);
    EXPECT_EQ(use(R"("tool_choice": "none")").choice, ToolUse::Choice::None);
    EXPECT_EQ(use(R"("tool_choice": "required", "parallel_tool_calls": false)").choice, ToolUse::Choice::Required);
    EXPECT_FALSE(use(R"("parallel_tool_calls": false)").parallel);
    const ToolUse named = use(R"("tool_choice": {"type": "function", "function": {"name": "now"}})");
    EXPECT_EQ(named.choice, ToolUse::Choice::Named);
    EXPECT_EQ(named.name, "now");
    const ToolUse allowed = use(R"("tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required",
        "tools": [{"type": "function", "function": {"name": "now"}}]}})");
    EXPECT_EQ(allowed.choice, ToolUse::Choice::Required);
    ASSERT_EQ(allowed.functions.size(), 1u);
    EXPECT_EQ(allowed.functions[0].name, "now");
}

TEST(ChatReader, Formats) {
    EXPECT_EQ(read(R"("response_format": {"type": "text"})").format.kind, ResponseFormat::Kind::Text);
    EXPECT_EQ(read(R"("response_format": {"type": "json_object"})").format.kind, ResponseFormat::Kind::JsonObject);
    const ResponseFormat schema = read(R"("response_format": {"type": "json_schema",
        "json_schema": {"name": "x", "strict": true, "schema": {"type": "object"}}})")
                                      .format;
    EXPECT_EQ(schema.kind, ResponseFormat::Kind::JsonSchema);
    EXPECT_EQ(schema.schema, R"({"type": "object"})");
    EXPECT_TRUE(schema.strict);
    EXPECT_EQ(read(R"("response_format": {"type": "json_object", "schema": {"type": "object"}})").format.schema,
              R"({"type": "object"})");
}

struct Refusal {
    const char* fields;
    const char* param;
    const char* message;
};

TEST(ChatReader, RefusesByName) {
    const Refusal refusals[] = {
        {R"("temperature": "hot")", "temperature", R"(temperature is "hot", must be a number from 0 to 2)"},
        {R"("temperature": 2.5)", "temperature", "temperature is 2.5, must be a number from 0 to 2"},
        {R"("top_p": 7)", "top_p", "top_p is 7, must be a number from 0 to 1"},
        {R"("max_tokens": -5)", "max_tokens", "max_tokens is -5, must be a whole number from 1 to 2147483647"},
        {R"("max_tokens": 0)", "max_tokens", "max_tokens is 0, must be a whole number from 1 to 2147483647"},
        {R"("max_tokens": 1.5)", "max_tokens", "max_tokens is 1.5, must be a whole number from 1 to 2147483647"},
        {R"("max_tokens": true)", "max_tokens", "max_tokens is true, must be a whole number from 1 to 2147483647"},
        {R"("n": 0)", "n", "n is 0, must be a whole number from 1 to 16"},
        {R"("n": 100000000000000000000000)", "n", "n is 100000000000000000000000, must be a whole number from 1 to 16"},
        {R"("stop": 5)", "stop", "stop is 5, must be a text or a list of texts"},
        {R"("stop": ["a", 5])", "stop[1]", "stop[1] is 5, must be a text"},
        {R"("stream": "yes")", "stream", R"(stream is "yes", must be true or false)"},
        {R"("stream_options": 1)", "stream_options", "stream_options is 1, must be an object"},
        {R"("logit_bias": {"1000": 1})", "logit_bias",
         R"(logit_bias has the key "1000", must be a token id from 0 to 999)"},
        {R"("logit_bias": {"5": 101})", "logit_bias.5", "logit_bias.5 is 101, must be a number from -100 to 100"},
        {R"("top_logprobs": 3)", "top_logprobs", "top_logprobs is 3, which needs logprobs to be true"},
        {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs",
         "top_logprobs is 21, must be a whole number from 0 to 20"},
        {R"("response_format": {"type": "poem"})", "response_format.type",
         R"(response_format.type is "poem", must be one of text, json_object, json_schema)"},
        {R"("response_format": {"type": "json_schema"})", "response_format.schema",
         "response_format.schema is missing"},
        {R"("tools": "x")", "tools", R"(tools is "x", must be a list)"},
        {R"("tools": [{"type": "custom", "custom": {}}])", "tools[0].type",
         R"(tools[0].type is "custom": only functions are offered here)"},
        {R"("tools": [{"type": "function"}])", "tools[0].function", "tools[0].function is missing"},
        {R"("tools": [{"function": {"name": "a b"}}])", "tools[0].function.name",
         R"(tools[0].function.name is "a b", must be 1 to 256 bytes without white space and without any of <>{}"')"},
        {R"("tools": [{"function": {"name": "a"}}, {"function": {"name": "a"}}])", "tools[1]",
         R"(tools[1] has the name "a", which another tool has)"},
        {R"("tool_choice": "required")", "tool_choice", "tool_choice asks for a call, but there are no tools"},
        {R"("tool_choice": {"type": "function", "function": {"name": "f"}})", "tool_choice",
         R"(tool_choice names the function "f", which is not among the tools)"},
        {R"("functions": [])", "functions", "functions is not known any more: use tools and tool_choice"},
        {R"("chat_template_kwargs": {"enable_thinking": 1})", "chat_template_kwargs",
         "chat_template_kwargs: enable_thinking is not true or false"},
        {R"("reasoning_effort": "huge")", "reasoning_effort",
         R"(reasoning_effort is "huge", must be one of none, minimal, low, medium, high, xhigh, max)"},
    };
    for (const Refusal& refusal : refusals) {
        SCOPED_TRACE(refusal.fields);
        const ApiError error = errorOf([&] { read(refusal.fields); });
        EXPECT_EQ(error.status(), 400);
        EXPECT_EQ(error.param, refusal.param);
        EXPECT_STREQ(error.what(), refusal.message);
    }
}

TEST(ChatReader, RefusesMessages) {
    const Refusal refusals[] = {
        {R"("x": 1)", "messages", "messages is missing"},
        {R"("messages": [])", "messages", "messages is empty, must hold at least one message"},
        {R"("messages": "x")", "messages", R"(messages is "x", must be a list)"},
        {R"("messages": [7])", "messages[0]", "messages[0] is 7, must be an object"},
        {R"("messages": [{"content": "x"}])", "messages[0].role", "messages[0].role is missing"},
        {R"("messages": [{"role": "user"}])", "messages[0].content", "messages[0].content is missing"},
        {R"("messages": [{"role": "alien", "content": "x"}])", "messages[0].role",
         R"(messages[0].role is "alien", must be one of system, developer, user, assistant, tool)"},
        {R"("messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}])",
         "messages[0].content[0]", R"(messages[0].content[0] is of type "image_url": the model reads texts only)"},
        {R"("messages": [{"role": "assistant", "tool_calls": [{}]}])", "messages",
         "messages: a tool call of message 0 has no function"},
    };
    for (const Refusal& refusal : refusals) {
        SCOPED_TRACE(refusal.fields);
        const ApiError error = errorOf([&] { readChatCompletion(fmt::format("{{{}}}", refusal.fields), kOptions); });
        EXPECT_EQ(error.param, refusal.param);
        EXPECT_STREQ(error.what(), refusal.message);
    }
}

// ---- answers

TEST(ChatWriter, WholeAnswer) {
    const Json answer = Json::parse(written(read(""), {content("Hel"), content("lo")}, {end(EndReason::Stop)}));
    EXPECT_EQ(withoutTimings(answer), Json::parse(R"({"id": "chatcmpl-0a1b", "object": "chat.completion",
        "created": 1700000000, "model": "story", "choices": [{"index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": null},
            "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}})"));
    EXPECT_EQ(answer["timings"]["cache_n"], 4);
    EXPECT_EQ(answer["timings"]["prompt_n"], 6);
    EXPECT_EQ(answer["timings"]["prompt_ms"], 500.0);
    EXPECT_EQ(answer["timings"]["predicted_per_second"], 3.5);
}

TEST(ChatWriter, WholeAnswerWithThoughtsAndCalls) {
    const Json answer = Json::parse(
        written(read(kTools),
                {reasoning("I "), reasoning("see"), call("light", "{\"a\":"), call("", "1}"), call("now", "{}", 1)},
                {end(EndReason::Stop)}));
    const Json& choice = answer["choices"][0];
    EXPECT_EQ(choice["message"], Json::parse(R"({"role": "assistant", "content": null, "refusal": null,
        "reasoning_content": "I see", "tool_calls": [
            {"id": "call_0a1b0000", "type": "function", "function": {"name": "light", "arguments": "{\"a\":1}"}},
            {"id": "call_0a1b0001", "type": "function", "function": {"name": "now", "arguments": "{}"}}]})"));
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
}

TEST(ChatWriter, LengthWinsOverCalls) {
    const Json answer = Json::parse(written(read(kTools), {call("now", "{}")}, {end(EndReason::MaxTokens)}));
    EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
    EXPECT_EQ(Json::parse(written(read(""), {}, {end(EndReason::Context)}))["choices"][0]["finish_reason"], "length");
    EXPECT_EQ(Json::parse(written(read(""), {}, {end(EndReason::StopText)}))["choices"][0]["finish_reason"], "stop");
}

TEST(ChatWriter, ShortCallIds) {
    AnswerName name = kName;
    name.shortCallIds = true;
    const auto writer = makeAnswerWriter(read(kTools), name);
    writer->begin({});
    writer->add(call("now", "{}"));
    writer->add(call("now", "{}", 1));
    writer->end(end(EndReason::Stop));
    const Json answer = Json::parse(writer->finish({}, {}));
    const Json& calls = answer["choices"][0]["message"]["tool_calls"];
    const std::string first = calls[0]["id"], second = calls[1]["id"];
    EXPECT_EQ(first.size(), 9u);
    EXPECT_NE(first, second);
}

TEST(ChatWriter, Logprobs) {
    const GenerationRequest request = read(R"("logprobs": true, "top_logprobs": 1)");
    const Delta delta = withLogprobs(content("é"), {logprob("\xC3", -0.5f, {{"x", -0.25f}}), logprob("\xA9", -1.0f)});
    const Json expected = Json::parse(R"([{"token": "�", "logprob": -0.5, "bytes": [195], "top_logprobs":
        [{"token": "x", "logprob": -0.25, "bytes": [120]}]},
        {"token": "�", "logprob": -1.0, "bytes": [169], "top_logprobs": []}])");
    const Json whole = Json::parse(written(request, {delta}, {end(EndReason::Stop)}));
    EXPECT_EQ(whole["choices"][0]["logprobs"]["content"], expected);
    GenerationRequest streamed = request;
    streamed.stream = true;
    EXPECT_EQ(
        eventsOf(written(streamed, {delta}, {end(EndReason::Stop)})).at(1).data["choices"][0]["logprobs"]["content"],
        expected);
}

TEST(ChatWriter, Stream) {
    GenerationRequest request = read(kTools + std::string(R"(, "stream": true)"));
    const auto events =
        eventsOf(written(request, {reasoning("R"), content("C"), call("now", "{}", 0)}, {end(EndReason::Stop)}));
    std::vector<std::string> deltas;
    for (size_t i = 0; i + 1 < events.size(); i++) {
        const Json& data = events[i].data;
        EXPECT_EQ(data["id"], "chatcmpl-0a1b");
        EXPECT_EQ(data["object"], "chat.completion.chunk");
        EXPECT_EQ(data["created"], 1700000000);
        EXPECT_EQ(data["model"], "story");
        EXPECT_FALSE(data.contains("usage"));
        EXPECT_EQ(data["choices"][0]["index"], 0);
        EXPECT_EQ(data["choices"][0]["finish_reason"], i + 2 < events.size() ? Json() : Json("tool_calls"));
        deltas.push_back(data["choices"][0]["delta"].dump());
    }
    EXPECT_EQ(
        deltas,
        (std::vector<std::string>{
            R"({"role":"assistant","content":""})", R"({"reasoning_content":"R"})", R"({"content":"C"})",
            R"({"tool_calls":[{"index":0,"id":"call_0a1b0000","type":"function","function":{"name":"now","arguments":""}}]})",
            R"({"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]})", "{}"}));
    EXPECT_TRUE(events.back().data.is_null());
}

TEST(ChatWriter, StreamOfTwoChoicesWithUsage) {
    const auto events =
        eventsOf(written(read(R"("stream": true, "n": 2, "stream_options": {"include_usage": true})"),
                         {content("a", 1), content("b", 0)}, {end(EndReason::Stop, 1), end(EndReason::MaxTokens, 0)}));
    std::vector<int> indexes;
    for (size_t i = 0; i < 6; i++) {
        indexes.push_back(events.at(i).data["choices"][0]["index"]);
        EXPECT_TRUE(events[i].data.at("usage").is_null());
    }
    EXPECT_EQ(indexes, (std::vector<int>{0, 1, 1, 0, 1, 0}));
    EXPECT_EQ(events.at(6).data["choices"], Json::array());
    EXPECT_EQ(events[6].data["usage"]["total_tokens"], 17);
    EXPECT_EQ(events.size(), 8u);
}

TEST(ChatWriter, Failures) {
    const ApiError error(ErrorKind::Internal, "", "the answer is lost");
    const char* expected =
        R"({"error":{"message":"the answer is lost","type":"server_error","param":null,"code":null}})";
    EXPECT_EQ(makeAnswerWriter(read(""), kName)->fail(error), expected);
    EXPECT_EQ(makeAnswerWriter(read(R"("stream": true)"), kName)->fail(error), fmt::format("data: {}\n\n", expected));
}

}  // namespace
}  // namespace dllama::api
