#include <gtest/gtest.h>

#include "api-support.hpp"

namespace dllama::api {
namespace {

using namespace test;

GenerationRequest read(const std::string& fields) {
    return readResponsesRequest("{" + fields + "}", kOptions);
}

const ChatRequest& chatOf(const GenerationRequest& request) {
    return std::get<ChatRequest>(request.prompts.at(0));
}

const char* const kTools = R"("tools": [{"type": "function", "name": "now", "description": null, "strict": true,
    "parameters": {"type": "object", "properties": {}}}, {"type": "function", "name": "light"}])";

TEST(ResponsesReader, Input) {
    const GenerationRequest request = read(R"("model": "m", "instructions": "I", "input": [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "R"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\": 1}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "assistant", "content": "c"}, {"role": "assistant", "content": "d"}])");
    EXPECT_EQ(request.dialect, Dialect::Responses);
    EXPECT_EQ(request.model, "m");
    std::vector<std::string> told;
    for (const ChatMessage& message : chatOf(request).messages) {
        std::string line = fmt::format("{}:{}:{}", message.role, message.reasoning.value_or(""), message.content);
        for (const ToolCall& call : message.toolCalls)
            line += fmt::format(":{}{}{}", call.id, call.name, call.arguments);
        told.push_back(fmt::format("{}:{}", line, message.toolCallId));
    }
    EXPECT_EQ(told, (std::vector<std::string>{
                        "system::I:", "system::D:", "user::a:", "assistant:R:b:c1f{\"x\": 1}:c2g{}:", "tool::one:c1",
                        "tool::two:c2", "assistant::c:", "assistant::d:"}));
    EXPECT_EQ(chatOf(read(R"("input": "hi")")).messages.at(0).content, "hi");
}

TEST(ResponsesReader, Fields) {
    const GenerationRequest request = read(R"("input": "hi", "max_output_tokens": 5, "temperature": 0, "top_p": 0.5,
        "stream": true, "top_logprobs": 2, "store": true, "metadata": {"a": "b"}, "truncation": "disabled",
        "reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true},
                 "verbosity": "low"}, "background": false, "previous_response_id": null)");
    EXPECT_EQ(request.maxTokens, 5);
    EXPECT_EQ(request.sampling.temperature, 0.0f);
    EXPECT_TRUE(request.stream && request.logprobs);
    EXPECT_EQ(request.topLogprobs, 2);
    EXPECT_EQ(chatOf(request).reasoningEffort, "low");
    EXPECT_EQ(request.format.kind, ResponseFormat::Kind::JsonSchema);
    EXPECT_EQ(request.format.schema, R"({"type": "object"})");
    EXPECT_TRUE(read(R"("input": "a", "include": ["message.output_text.logprobs"])").logprobs);
    EXPECT_EQ(chatOf(read(R"("input": "a", "reasoning": {"effort": "none"})")).enableThinking, false);
    EXPECT_EQ(chatOf(read(R"("input": "a", "chat_template_kwargs": {"enable_thinking": false})")).enableThinking,
              false);
}

TEST(ResponsesReader, Tools) {
    const GenerationRequest request =
        read(R"("input": "hi", "parallel_tool_calls": false, "tool_choice": {"type": "function", "name": "light"}, )" +
             std::string(kTools));
    EXPECT_EQ(
        chatOf(request).tools.at(0),
        R"({"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}})");
    EXPECT_EQ(request.tools.choice, ToolUse::Choice::Named);
    EXPECT_EQ(request.tools.name, "light");
    EXPECT_FALSE(request.tools.parallel);
}

TEST(ResponsesReader, RefusesByName) {
    const std::tuple<const char*, const char*, const char*> refusals[] = {
        {R"("model": "m")", "input", "input is missing"},
        {R"("input": [])", "input", "input is empty, must hold at least one item"},
        {R"("input": 5)", "input", "input is 5, must be a text or a list"},
        {R"("input": [{"type": "item_reference", "id": "x"}])", "input[0].type",
         R"(input[0].type is "item_reference", must be message, function_call, function_call_output or reasoning)"},
        {R"("input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}])",
         "input[0].content[0]", R"(input[0].content[0] is of type "input_image": the model reads texts only)"},
        {R"("input": [{"role": "tool", "content": "x"}])", "input[0].role",
         R"(input[0].role is "tool", must be one of user, assistant, system, developer)"},
        {R"("input": "a", "previous_response_id": "resp_1")", "previous_response_id",
         "previous_response_id is not supported: this server keeps no responses"},
        {R"("input": "a", "conversation": "c")", "conversation",
         "conversation is not supported: this server keeps no responses"},
        {R"("input": "a", "background": true)", "background",
         "background is not supported: this server keeps no responses"},
        {R"("input": "a", "tools": [{"type": "web_search"}])", "tools[0].type",
         R"(tools[0].type is "web_search": only functions are offered here)"},
        {R"("input": "a", "text": {"format": {"type": "json_schema", "name": "n"}})", "text.format.schema",
         "text.format.schema is missing"},
        {R"("input": "a", "max_output_tokens": 0)", "max_output_tokens",
         "max_output_tokens is 0, must be a whole number from 1 to 2147483647"},
    };
    for (const auto& [fields, param, message] : refusals) {
        SCOPED_TRACE(fields);
        const ApiError error = errorOf([&, f = fields] { read(f); });
        EXPECT_EQ(error.param, param);
        EXPECT_STREQ(error.what(), message);
    }
}

TEST(ResponsesWriter, WholeAnswer) {
    const GenerationRequest request =
        read(R"("input": "a", "temperature": 0.5, "metadata": {"k": "v"}, )" + std::string(kTools));
    const Json answer = Json::parse(
        written(request, {reasoning("R"), content("Hel"), content("lo"), call("now", "{}")}, {end(EndReason::Stop)}));
    EXPECT_EQ(answer["output"], Json::parse(R"([
        {"id": "rs_0a1b00", "type": "reasoning", "status": "completed", "summary": [],
         "content": [{"type": "reasoning_text", "text": "R"}]},
        {"id": "msg_0a1b01", "type": "message", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]},
        {"id": "fc_0a1b02", "type": "function_call", "status": "completed", "call_id": "call_0a1b0000",
         "name": "now", "arguments": "{}"}])"));
    Json rest = answer;
    rest.erase("output");
    EXPECT_EQ(rest, Json::parse(R"({"id": "resp_0a1b", "object": "response", "created_at": 1700000000,
        "status": "completed", "background": false, "error": null, "incomplete_details": null, "model": "story",
        "instructions": null, "max_output_tokens": null, "metadata": {"k": "v"}, "parallel_tool_calls": true,
        "reasoning": null, "temperature": 0.5, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
        "tools": [{"type": "function", "name": "now", "description": null, "strict": true,
                   "parameters": {"type": "object", "properties": {}}}, {"type": "function", "name": "light"}],
        "top_p": null, "truncation": "disabled", "user": null, "previous_response_id": null, "store": false,
        "usage": {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 7,
                  "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 17}})"));
}

TEST(ResponsesWriter, CutOffAnswer) {
    const Json answer = Json::parse(written(read(R"("input": "a")"), {content("Hel")}, {end(EndReason::MaxTokens)}));
    EXPECT_EQ(answer["status"], "incomplete");
    EXPECT_EQ(answer["incomplete_details"], Json::parse(R"({"reason": "max_output_tokens"})"));
    EXPECT_EQ(answer["output"][0]["status"], "incomplete");
}

TEST(ResponsesWriter, AnEmptyAnswerIsAMessage) {
    const Json answer = Json::parse(written(read(R"("input": "a")"), {}, {end(EndReason::Stop)}));
    EXPECT_EQ(answer["output"][0]["content"][0]["text"], "");
}

TEST(ResponsesWriter, StreamTellsEachItemFromItsBeginToItsEnd) {
    const auto events = eventsOf(written(
        read(R"("input": "a", "stream": true)"),
        {reasoning("R"), content("Hel"), content("lo"), call("now", "{\"a\""), call("", ":1}"), call("light", "{}", 1)},
        {end(EndReason::Stop)}));
    std::vector<std::string> told;
    for (size_t i = 0; i < events.size(); i++) {
        const Json& data = events[i].data;
        EXPECT_EQ(data["type"], events[i].name);
        EXPECT_EQ(data["sequence_number"], i);
        std::string line = events[i].name.substr(std::string("response.").size());
        if (data.contains("output_index")) line += fmt::format(" {}", data["output_index"].dump());
        for (const char* key : {"item_id", "delta", "text", "arguments"})
            if (data.contains(key)) line += fmt::format(" {}", data[key].get<std::string>());
        told.push_back(line);
    }
    EXPECT_EQ(told, (std::vector<std::string>{"created",
                                              "in_progress",
                                              "output_item.added 0",
                                              "reasoning_text.delta 0 rs_0a1b00 R",
                                              "reasoning_text.done 0 rs_0a1b00 R",
                                              "output_item.done 0",
                                              "output_item.added 1",
                                              "content_part.added 1 msg_0a1b01",
                                              "output_text.delta 1 msg_0a1b01 Hel",
                                              "output_text.delta 1 msg_0a1b01 lo",
                                              "output_text.done 1 msg_0a1b01 Hello",
                                              "content_part.done 1 msg_0a1b01",
                                              "output_item.done 1",
                                              "output_item.added 2",
                                              "function_call_arguments.delta 2 fc_0a1b02 {\"a\"",
                                              "function_call_arguments.delta 2 fc_0a1b02 :1}",
                                              "function_call_arguments.done 2 fc_0a1b02 {\"a\":1}",
                                              "output_item.done 2",
                                              "output_item.added 3",
                                              "function_call_arguments.delta 3 fc_0a1b03 {}",
                                              "function_call_arguments.done 3 fc_0a1b03 {}",
                                              "output_item.done 3",
                                              "completed"}));
    EXPECT_EQ(events[0].data["response"]["status"], "in_progress");
    EXPECT_EQ(events[0].data["response"]["output"], Json::array());
    EXPECT_EQ(events[13].data["item"]["arguments"], "");
    const Json& last = events.back().data["response"];
    EXPECT_EQ(last["status"], "completed");
    EXPECT_EQ(last["output"].size(), 4u);
    EXPECT_EQ(last["output"][1], events[12].data["item"]);
}

TEST(ResponsesWriter, Logprobs) {
    const Delta delta = withLogprobs(content("x"), {logprob("x", -0.5f)});
    const auto events =
        eventsOf(written(read(R"("input": "a", "stream": true, "top_logprobs": 1)"), {delta}, {end(EndReason::Stop)}));
    const Json expected = Json::parse(R"([{"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}])");
    EXPECT_EQ(events.at(4).data["logprobs"], expected);
    EXPECT_EQ(events.at(5).data["logprobs"], expected);
    EXPECT_EQ(events.back().data["response"]["output"][0]["content"][0]["logprobs"], expected);
}

TEST(ResponsesWriter, Failure) {
    const auto writer = makeAnswerWriter(read(R"("input": "a", "stream": true)"), kName);
    writer->begin({});
    const auto events = eventsOf(writer->fail({ErrorKind::Internal, "", "lost"}));
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0].data, Json::parse(R"({"type": "error", "sequence_number": 2, "code": "server_error",
        "message": "lost", "param": null})"));
    EXPECT_EQ(events[1].name, "response.failed");
    EXPECT_EQ(events[1].data["response"]["status"], "failed");
    EXPECT_EQ(events[1].data["response"]["error"], Json::parse(R"({"code": "server_error", "message": "lost"})"));
}

}  // namespace
}  // namespace dllama::api
