#include <gtest/gtest.h>

#include "api-support.hpp"

namespace dllama::api {
namespace {

using namespace test;

const char* const kUser = R"("model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}])";

GenerationRequest read(const std::string& fields) {
    return readMessagesRequest(fmt::format("{{{}{}{}}}", kUser, fields.empty() ? "" : ", ", fields), kOptions);
}

const ChatRequest& chatOf(const GenerationRequest& request) {
    return std::get<ChatRequest>(request.prompts.at(0));
}

const char* const kTools =
    R"("tools": [{"name": "now", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
    {"type": "custom", "name": "light", "description": "d", "input_schema": {"type": "object", "properties": {}}}])";

TEST(MessagesReader, Conversation) {
    const GenerationRequest request = readMessagesRequest(R"({"model": "m", "max_tokens": 1,
        "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "T", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"z": 1, "a": [2]}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}], "is_error": false},
            {"type": "tool_result", "tool_use_id": "t2"}, {"type": "text", "text": "c"}]}]})",
                                                          kOptions);
    EXPECT_EQ(request.dialect, Dialect::Messages);
    std::vector<std::string> told;
    for (const ChatMessage& message : chatOf(request).messages) {
        std::string line = fmt::format("{}:{}:{}", message.role, message.reasoning.value_or(""), message.content);
        for (const ToolCall& call : message.toolCalls)
            line += fmt::format(":{}{}{}", call.id, call.name, call.arguments);
        told.push_back(fmt::format("{}:{}", line, message.toolCallId));
    }
    EXPECT_EQ(told, (std::vector<std::string>{"system::S:", "user::a:", "assistant:T:b:t1f{\"z\": 1, \"a\": [2]}:",
                                              "tool::r:t1", "tool:::t2", "user::c:"}));
}

TEST(MessagesReader, ALastMessageOfTheAssistantBeginsTheAnswer) {
    const GenerationRequest request = readMessagesRequest(
        R"({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": "{"}]})",
        kOptions);
    EXPECT_EQ(request.answerBegin, "{");
    ASSERT_EQ(chatOf(request).messages.size(), 1u);
    EXPECT_EQ(renderPrompt(ChatFormat::Glm45, request, chatOf(request)).text(),
              renderChat(ChatFormat::Glm45, chatOf(request)).text() + "{");
}

TEST(MessagesReader, Fields) {
    const GenerationRequest request = read(R"("system": "S", "temperature": 0.5, "top_p": 0.25, "top_k": 5,
        "stop_sequences": ["x", "y"], "stream": true, "metadata": {"user_id": "u"}, "service_tier": "auto",
        "x_unknown": 1)");
    EXPECT_EQ(request.maxTokens, 9);
    EXPECT_EQ(request.sampling.temperature, 0.5f);
    EXPECT_EQ(request.sampling.topK, 5);
    EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "y"}));
    EXPECT_TRUE(request.stream);
    EXPECT_EQ(chatOf(request).messages.at(0).role, "system");
}

TEST(MessagesReader, Thinking) {
    EXPECT_EQ(chatOf(read("")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("thinking": {"type": "enabled", "budget_tokens": 2000})")).enableThinking, true);
    EXPECT_EQ(read(R"("thinking": {"type": "enabled", "budget_tokens": 2000})").reasoningBudget, 2000);
    EXPECT_EQ(chatOf(read(R"("thinking": {"type": "adaptive"})")).enableThinking, true);
    EXPECT_EQ(chatOf(read(R"("thinking": {"type": "disabled"})")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("chat_template_kwargs": {"enable_thinking": true})")).enableThinking, true);
    EXPECT_EQ(chatOf(read(R"("output_config": {"effort": "high"})")).reasoningEffort, "high");
}

TEST(MessagesReader, Tools) {
    const GenerationRequest request = read(kTools);
    EXPECT_EQ(chatOf(request).tools.at(1),
              R"({"type": "function", "function": {"name": "light", "description": "d", "parameters": )"
              R"({"type": "object", "properties": {}}}})");
    EXPECT_EQ(request.tools.functions.at(0).parameters, R"({"type": "object"})");
    const auto use = [](const std::string& choice) { return read(kTools + (", \"tool_choice\": " + choice)).tools; };
    EXPECT_EQ(use(R"({"type": "auto", "disable_parallel_tool_use": true})").parallel, false);
    EXPECT_EQ(use(R"({"type": "any"})").choice, ToolUse::Choice::Required);
    EXPECT_EQ(use(R"({"type": "none"})").choice, ToolUse::Choice::None);
    EXPECT_EQ(use(R"({"type": "tool", "name": "light"})").name, "light");
    EXPECT_EQ(
        read(R"("output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}})").format.schema,
        R"({"type": "object"})");
}

TEST(MessagesReader, RefusesByName) {
    const std::tuple<const char*, const char*, const char*> refusals[] = {
        {R"("max_tokens": 4, "messages": [])", "model", "model is missing"},
        {R"("model": "m", "messages": [{"role": "user", "content": "x"}])", "max_tokens", "max_tokens is missing"},
        {R"("model": "m", "max_tokens": 4)", "messages", "messages is missing"},
        {R"("model": "m", "max_tokens": 4, "messages": [])", "messages",
         "messages is empty, must hold at least one message"},
        {R"("model": "m", "max_tokens": 0, "messages": [{"role": "user", "content": "x"}])", "max_tokens",
         "max_tokens is 0, must be a whole number from 1 to 2147483647"},
        {R"("model": "m", "max_tokens": 4, "messages": [{"role": "alien", "content": "x"}])", "messages[0].role",
         R"(messages[0].role is "alien", must be one of user, assistant)"},
        {R"("model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}])",
         "messages[0].content[0].type",
         R"(messages[0].content[0].type is "image", which a message of the user cannot have here)"},
        {R"("model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}])",
         "messages[0].content[0].tool_use_id", "messages[0].content[0].tool_use_id is missing"},
        {R"("model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "web_search_20250305", "name": "web_search"}])",
         "tools[0].type", R"(tools[0].type is "web_search_20250305": only the client's own tools are offered here)"},
        {R"("model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}],
            "tool_choice": {"type": "any"})",
         "tool_choice", "tool_choice asks for a call, but there are no tools"},
    };
    for (const auto& [fields, param, message] : refusals) {
        SCOPED_TRACE(fields);
        const ApiError error = errorOf([&, f = fields] { readMessagesRequest(fmt::format("{{{}}}", f), kOptions); });
        EXPECT_EQ(error.param, param);
        EXPECT_STREQ(error.what(), message);
    }
}

TEST(MessagesReader, CountTokensNeedsNoLimit) {
    const GenerationRequest request =
        readCountTokens(R"({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})", kOptions);
    EXPECT_EQ(renderPrompt(ChatFormat::Glm45, request, chatOf(request)).text(),
              renderPrompt(ChatFormat::Glm45, read(""), chatOf(read(""))).text());
}

TEST(MessagesWriter, WholeAnswer) {
    const Json answer = Json::parse(
        written(read(kTools), {reasoning("T"), content("Hel"), content("lo"), call("light", "{\"on\": true}")},
                {end(EndReason::Stop)}));
    EXPECT_EQ(answer, Json::parse(R"({"id": "msg_0a1b", "type": "message", "role": "assistant", "model": "story",
        "content": [{"type": "thinking", "thinking": "T", "signature": ""}, {"type": "text", "text": "Hello"},
                    {"type": "tool_use", "id": "toolu_0a1b0000", "name": "light", "input": {"on": true}}],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
                  "output_tokens": 7}})"));
}

TEST(MessagesWriter, StopReasons) {
    const auto reason = [](EndReason why, std::string stopText = "") {
        ChoiceEnd end;
        end.reason = why;
        end.stopText = std::move(stopText);
        const Json answer = Json::parse(written(read(""), {content("x")}, {end}));
        return Json::array({answer["stop_reason"], answer["stop_sequence"]});
    };
    EXPECT_EQ(reason(EndReason::Stop), Json::parse(R"(["end_turn", null])"));
    EXPECT_EQ(reason(EndReason::MaxTokens), Json::parse(R"(["max_tokens", null])"));
    EXPECT_EQ(reason(EndReason::Context), Json::parse(R"(["model_context_window_exceeded", null])"));
    EXPECT_EQ(reason(EndReason::StopText, "END"), Json::parse(R"(["stop_sequence", "END"])"));
}

TEST(MessagesWriter, Stream) {
    const auto events = eventsOf(written(
        read(R"("stream": true)"),
        {reasoning("T"), content("Hel"), content("lo"), call("now", "{\"a\":"), call("", "1}"), call("light", "{}", 1)},
        {end(EndReason::Stop)}));
    std::vector<std::string> told;
    for (const SentEvent& event : events) {
        EXPECT_EQ(event.data["type"], event.name);
        Json rest = event.data;
        rest.erase("type");
        told.push_back(fmt::format("{} {}", event.name, rest.dump()));
    }
    EXPECT_EQ(
        told,
        (std::vector<std::string>{
            R"(message_start {"message":{"id":"msg_0a1b","type":"message","role":"assistant","model":"story","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":6,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":0}}})",
            R"(content_block_start {"index":0,"content_block":{"type":"thinking","thinking":"","signature":""}})",
            R"(content_block_delta {"index":0,"delta":{"type":"thinking_delta","thinking":"T"}})",
            R"(content_block_delta {"index":0,"delta":{"type":"signature_delta","signature":""}})",
            R"(content_block_stop {"index":0})",
            R"(content_block_start {"index":1,"content_block":{"type":"text","text":""}})",
            R"(content_block_delta {"index":1,"delta":{"type":"text_delta","text":"Hel"}})",
            R"(content_block_delta {"index":1,"delta":{"type":"text_delta","text":"lo"}})",
            R"(content_block_stop {"index":1})",
            R"(content_block_start {"index":2,"content_block":{"type":"tool_use","id":"toolu_0a1b0000","name":"now","input":{}}})",
            R"(content_block_delta {"index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}})",
            R"(content_block_delta {"index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}})",
            R"(content_block_stop {"index":2})",
            R"(content_block_start {"index":3,"content_block":{"type":"tool_use","id":"toolu_0a1b0001","name":"light","input":{}}})",
            R"(content_block_delta {"index":3,"delta":{"type":"input_json_delta","partial_json":"{}"}})",
            R"(content_block_stop {"index":3})",
            R"(message_delta {"delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":6,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":7}})",
            R"(message_stop {})"}));
}

TEST(MessagesWriter, ACallThatWasCutOffHasNoInput) {
    for (const std::string& arguments : {std::string("{\"a\": "), std::string("[1]"), std::string(100'000, '[')}) {
        const Json answer = Json::parse(written(read(kTools), {call("now", arguments)}, {end(EndReason::MaxTokens)}));
        EXPECT_EQ(answer["content"][0]["input"], Json::object());
    }
}

TEST(MessagesWriter, Failure) {
    EXPECT_EQ(
        makeAnswerWriter(read(R"("stream": true)"), kName)->fail({ErrorKind::Unavailable, "", "lost"}),
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"lost\"}}\n\n");
}

}  // namespace
}  // namespace dllama::api
