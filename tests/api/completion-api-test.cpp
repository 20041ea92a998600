#include <gtest/gtest.h>

#include "api-support.hpp"

namespace dllama::api {
namespace {

using namespace test;

GenerationRequest read(const std::string& fields) {
    return readCompletion("{" + fields + "}", kOptions);
}

/// Texts in quotes, token ids in brackets.
std::string promptsOf(const GenerationRequest& request) {
    std::string out;
    for (const Prompt& prompt : request.prompts) {
        if (const auto* text = std::get_if<std::string>(&prompt))
            out += '"' + *text + '"';
        else
            out += Json(std::get<std::vector<int>>(prompt)).dump();
    }
    return out;
}

TEST(CompletionReader, Prompts) {
    EXPECT_EQ(promptsOf(read(R"("prompt": "a")")), "\"a\"");
    EXPECT_EQ(promptsOf(read(R"("prompt": ["a", "b"])")), "\"a\"\"b\"");
    EXPECT_EQ(promptsOf(read(R"("prompt": [1, 999])")), "[1,999]");
    EXPECT_EQ(promptsOf(read(R"("prompt": [[1], [2, 3], "c"])")), "[1][2,3]\"c\"");
    EXPECT_EQ(read(R"("prompt": ["a", "b"], "n": 3)").nChoices(), 6);
}

TEST(CompletionReader, Fields) {
    const GenerationRequest request = read(R"("prompt": "a", "model": "m", "logprobs": 2, "best_of": 3, "suffix": "",
        "temperature": 0, "stop": "x", "user": "u", "stream": true, "stream_options": {"include_usage": true})");
    EXPECT_EQ(request.maxTokens, 16);
    EXPECT_TRUE(request.logprobs);
    EXPECT_EQ(request.topLogprobs, 2);
    EXPECT_EQ(request.sampling.temperature, 0.0f);
    EXPECT_TRUE(request.stream && request.includeUsage);
    EXPECT_TRUE(read(R"("prompt": "a", "echo": true)").echo);
    EXPECT_TRUE(read(R"("prompt": "a", "logprobs": 0)").logprobs);
}

TEST(CompletionReader, RefusesByName) {
    const std::pair<const char*, const char*> refusals[] = {
        {R"("x": 1)", "prompt is missing"},
        {R"("prompt": [])", "prompt is empty, must hold at least one text or token id"},
        {R"("prompt": 5)", "prompt is 5, must be a text, a list of texts or a list of token ids"},
        {R"("prompt": [1, 1000])", "prompt is 1000, must be a whole number from 0 to 999"},
        {R"("prompt": [1, "a"])", R"(prompt[1] is "a", must be a whole number from 0 to 999)"},
        {R"("prompt": ["a", {}])", "prompt[1] is an object, must be a text or a list of token ids"},
        {R"("prompt": [[1], []])", "prompt[1] is empty, must hold at least one token id"},
        {R"("prompt": ["a", "b", "c"], "n": 6)", "3 prompts times n 6 are more than 16 choices"},
        {R"("prompt": "a", "suffix": "b")", "suffix: the model does not fill in the middle"},
        {R"("prompt": "a", "logprobs": 6)", "logprobs is 6, must be a whole number from 0 to 5"},
        {R"("prompt": "a", "logprobs": true)", "logprobs is true, must be a whole number from 0 to 5"},
    };
    for (const auto& [fields, message] : refusals) {
        SCOPED_TRACE(fields);
        EXPECT_STREQ(errorOf([&fields = fields] { read(fields); }).what(), message);
    }
}

TEST(CompletionWriter, WholeAnswerOfTwoPrompts) {
    const Json answer = Json::parse(written(read(R"("prompt": ["a", "b"])"), {content("y", 1), content("x", 0)},
                                            {end(EndReason::Stop, 0), end(EndReason::MaxTokens, 1)}));
    EXPECT_EQ(withoutTimings(answer), Json::parse(R"({"id": "cmpl-0a1b", "object": "text_completion",
        "created": 1700000000, "model": "story", "choices": [
            {"text": "x", "index": 0, "logprobs": null, "finish_reason": "stop"},
            {"text": "y", "index": 1, "logprobs": null, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}})"));
}

TEST(CompletionWriter, LogprobsWholeAndStreamed) {
    const Delta first =
        withLogprobs(content("é"), {logprob("\xC3", -0.5f, {{"\xC3", -0.5f}, {"x", -2.0f}}), logprob("\xA9", -1.0f)});
    const Delta second = withLogprobs(content("né"), {logprob("né", -0.25f)});
    GenerationRequest request = read(R"("prompt": "a", "logprobs": 2)");
    const std::vector<ChoiceEnd> ends = {end(EndReason::Stop)};
    const Json whole = Json::parse(written(request, {first, second}, ends))["choices"][0]["logprobs"];
    EXPECT_EQ(whole, Json::parse(R"({"tokens": ["bytes:\\xc3", "bytes:\\xa9", "né"],
        "token_logprobs": [-0.5, -1.0, -0.25], "top_logprobs": [{"bytes:\\xc3": -0.5, "x": -2.0}, {}, {}],
        "text_offset": [0, 1, 1]})"));
    request.stream = true;
    const auto events = eventsOf(written(request, {first, second}, ends));
    ASSERT_EQ(events.size(), 4u);
    EXPECT_EQ(events[1].data["choices"][0]["logprobs"]["text_offset"], Json::parse("[1]"));
    EXPECT_EQ(events[2].data["choices"][0]["finish_reason"], "stop");
}

TEST(CompletionWriter, StreamWithUsage) {
    GenerationRequest request = read(R"("prompt": "a", "stream": true, "stream_options": {"include_usage": true})");
    const auto events = eventsOf(written(request, {content("x")}, {end(EndReason::Stop)}));
    ASSERT_EQ(events.size(), 4u);
    EXPECT_EQ(events[0].data["object"], "text_completion");
    EXPECT_EQ(events[0].data["choices"][0]["text"], "x");
    EXPECT_TRUE(events[0].data["usage"].is_null());
    EXPECT_EQ(events[2].data["choices"], Json::array());
    EXPECT_EQ(events[2].data["usage"]["completion_tokens"], 7);
    EXPECT_TRUE(events[3].data.is_null());
}

}  // namespace
}  // namespace dllama::api
