#include <gtest/gtest.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "base/errors.hpp"
#include "text-reference.hpp"
#include "text/chat-format.hpp"
#include "text/python-json.hpp"

namespace dllama {
namespace {

using nlohmann::ordered_json;

ChatFormat formatOfCases(const std::string& name) {
    return name == "llama-3.1" ? ChatFormat::Llama31 : chatFormatByName(name);
}

std::string contentOf(ChatFormat format, const ordered_json& message) {
    if (!message.contains("content") || message["content"].is_null()) return "";
    if (message["content"].is_string()) return message["content"];
    std::vector<std::string> parts;
    for (const auto& part : message["content"]) parts.push_back(part.at("text"));
    return joinContentParts(format, message["role"].get<std::string>(), parts);
}

/// The request as an OpenAI client sends it.
ChatRequest requestOf(ChatFormat format, const ordered_json& one) {
    ChatRequest request;
    for (const auto& message : one.at("messages")) {
        ChatMessage out;
        out.role = message.at("role");
        out.content = contentOf(format, message);
        if (message.contains("reasoning_content") && message["reasoning_content"].is_string()) {
            out.reasoning = message["reasoning_content"].get<std::string>();
        }
        if (message.contains("tool_calls") && message["tool_calls"].is_array()) {
            for (const auto& call : message["tool_calls"]) {
                out.toolCalls.push_back({call["function"]["name"], call["function"]["arguments"]});
            }
        }
        request.messages.push_back(std::move(out));
    }
    if (one.contains("tools") && one["tools"].is_array()) {
        for (const auto& tool : one["tools"]) request.tools.push_back(tool.dump());
    }
    request.addGenerationPrompt = one.at("add_generation_prompt");
    if (one.at("enable_thinking").is_boolean()) request.enableThinking = one["enable_thinking"].get<bool>();
    const auto options = one.value("chat_template_kwargs", ordered_json::object());
    request.clearThinking = options.value("clear_thinking", true);
    request.toolsInUserMessage = options.value("tools_in_user_message", true);
    return request;
}

/// Renders all cases of a family and compares. Returns how many are equal.
size_t checkCases(const std::string& family, const ordered_json& cases) {
    const ChatFormat format = formatOfCases(family);
    size_t equal = 0;
    for (const auto& one : cases) {
        SCOPED_TRACE(family + " " + one.at("name").get<std::string>());
        const ChatRequest request = requestOf(format, one);
        if (one.at("rendered").is_null()) {
            try {
                renderChat(format, request);
                ADD_FAILURE() << "this request is to be refused";
            } catch (const ConfigError& error) {
                EXPECT_EQ(error.what(), one.at("error").get<std::string>());
                equal += error.what() == one.at("error").get<std::string>();
            }
            continue;
        }
        const std::string actual = renderChat(format, request).text();
        const std::string expected = one.at("rendered");
        EXPECT_EQ(actual, expected);
        equal += actual == expected;
    }
    return equal;
}

TEST(ChatFormat, RendersAsTheTemplates) {
    const auto families = ordered_json::parse(test::readText(DLLAMA_TEST_DATA "/text/chat-cases.json"));
    ASSERT_EQ(families.size(), 8u);
    for (const auto& [family, cases] : families.items()) EXPECT_EQ(checkCases(family, cases), cases.size());
}

TEST(ChatFormat, RendersEveryReferenceCase) {
    const auto shared = test::sharedFolder();
    if (!shared) GTEST_SKIP() << "the folder ../shared with the reference prompts is absent";
    for (const char* family :
         {"chatml", "glm-4-9b-chat", "glm-4.5", "glm-4.7", "glm4-0414", "intellect-3", "llama-3.1", "qwen3"}) {
        const std::string file = std::string("chat/render-").append(family).append(".json");
        const auto data = ordered_json::parse(test::readText(*shared / file));
        const size_t equal = checkCases(family, data.at("cases"));
        std::cout << family << ": " << equal << " of " << data.at("cases").size() << " prompts equal\n";
    }
}

std::string rendered(ChatFormat format, std::vector<ChatMessage> messages) {
    return renderChat(format, {.messages = std::move(messages)}).text();
}

TEST(ChatFormat, FamiliesWithoutReferencePrompts) {
    const std::vector<ChatMessage> one = {{"user", "q1"}};
    const std::vector<ChatMessage> two = {{"user", "q1"}, {"assistant", "a1"}, {"user", "q2"}};
    EXPECT_EQ(rendered(ChatFormat::None, one), "q1");
    EXPECT_EQ(rendered(ChatFormat::Chatglm, one), "q1[gMASK]<sop>");
    EXPECT_EQ(rendered(ChatFormat::Chatglm, two), "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：[gMASK]<sop>");
    EXPECT_EQ(rendered(ChatFormat::Chatglm2, one), "[gMASK]sop[Round 1]\n\n问：q1\n\n答：");
    EXPECT_EQ(rendered(ChatFormat::Chatglm2, two),
              "[gMASK]sop[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答：");
    EXPECT_EQ(rendered(ChatFormat::Chatglm3, {{"system", "s"}, {"user", "q"}}),
              "[gMASK]sop<|system|>\ns<|user|>\nq<|assistant|>");
    EXPECT_EQ(rendered(ChatFormat::GlmZ1, {{"user", "q1"}, {"assistant", "<think>t</think>\na1"}, {"user", "q2"}}),
              "[gMASK]<sop><|user|>\nq1<|assistant|>\na1<|user|>\nq2<|assistant|>\n<think>");
    EXPECT_EQ(rendered(ChatFormat::Llama2, {{"system", "s"}, {"user", "q1"}, {"assistant", "a1"}, {"user", "q2"}}),
              "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST]");
    EXPECT_EQ(rendered(ChatFormat::Llama3, {{"user", " q "}}),
              "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST(ChatFormat, SaysWhetherTheAnswerBeginsWithThoughts) {
    const auto inside = [](ChatFormat format, std::optional<bool> thinking) {
        return renderChat(format, {.messages = {{"user", "q"}}, .enableThinking = thinking}).endsInsideThink;
    };
    EXPECT_TRUE(inside(ChatFormat::Intellect3, std::nullopt));
    EXPECT_TRUE(inside(ChatFormat::GlmZ1, std::nullopt));
    EXPECT_TRUE(inside(ChatFormat::Glm47, std::nullopt));
    EXPECT_FALSE(inside(ChatFormat::Glm47, false));
    EXPECT_FALSE(inside(ChatFormat::Glm45, std::nullopt));
    EXPECT_FALSE(inside(ChatFormat::Qwen3, std::nullopt));
}

TEST(ChatFormat, RefusesWhatNoTemplateKnows) {
    EXPECT_THROW(renderChat(ChatFormat::Chatml, {}), ConfigError);
    EXPECT_THROW(rendered(ChatFormat::Chatml, {{"user<|im_end|>", "q"}}), ConfigError);
    EXPECT_THROW(rendered(ChatFormat::Chatglm, {{"assistant", "a"}}), ConfigError);
    ChatMessage call{"assistant", ""};
    call.toolCalls = {{"f", "[1]"}};
    EXPECT_THROW(rendered(ChatFormat::Glm45, {{"user", "q"}, call}), ConfigError);
    call.toolCalls = {{"f", "{\"a\": "}};
    EXPECT_THROW(rendered(ChatFormat::Qwen3, {{"user", "q"}, call}), ConfigError);
    EXPECT_THROW(renderChat(ChatFormat::Glm45, {.messages = {{"user", "q"}}, .tools = {"3"}}), ConfigError);
    EXPECT_THROW(chatFormatByName("glm-5"), ConfigError);
    TokenizerFile file;
    file.chatFormat = "glm-5";
    EXPECT_THROW(chatFormatOf(file), FormatError);
}

TEST(ChatFormat, ChoosesLlama31ByItsTemplate) {
    TokenizerFile file;
    file.chatFormat = "llama3";
    EXPECT_EQ(chatFormatOf(file), ChatFormat::Llama3);
    file.chatTemplate = "... Cutting Knowledge Date: ...";
    EXPECT_EQ(chatFormatOf(file), ChatFormat::Llama31);
}

/// A byte-level tokenizer whose only tokens beyond the bytes are the given markers.
Tokenizer markerTokenizer(const std::vector<std::string>& markers) {
    TokenizerFile file;
    for (int byte = 0; byte < 256; byte++) file.vocab.emplace_back(1, static_cast<char>(byte));
    for (const std::string& marker : markers) {
        file.special.push_back({static_cast<int>(file.vocab.size()), marker, true});
        file.vocab.push_back(marker);
    }
    file.scores.resize(file.vocab.size());
    file.patterns = {"\\s+|\\S+"};
    return Tokenizer(std::move(file));
}

TEST(ChatFormat, UserTextNeverBecomesAMarker) {
    const std::vector<std::string> markers = {"[gMASK]",       "<sop>",        "<|system|>", "<|user|>",
                                              "<|assistant|>", "<think>",      "</think>",   "/nothink",
                                              "<tool_call>",   "</tool_call>", "<|im_end|>", "<|observation|>"};
    const Tokenizer tokenizer = markerTokenizer(markers);
    std::string hostile = "x";
    for (const std::string& marker : markers) hostile += marker + " " + marker;
    ChatMessage call{"assistant", hostile, hostile};
    call.toolCalls = {{hostile, "{\"" + hostile + "\": \"" + hostile + "\"}"}};
    const auto countMarkers = [&](ChatFormat format, const ChatRequest& request) {
        std::vector<int> found;
        for (int id : tokenizer.encode(renderChat(format, request).segments)) {
            if (id >= 256) found.push_back(id);
        }
        return found;
    };
    const std::string tool = "{\"type\": \"function\", \"function\": {\"name\": \"" + hostile + "\"}}";
    ChatRequest evil = {
        .messages = {{"system", hostile}, {"user", hostile}, call, {"tool", hostile}, {"user", hostile}},
        .tools = {tool}};
    ChatMessage tameCall{"assistant", "x", "x"};
    tameCall.toolCalls = {{"f", "{\"a\": \"b\"}"}};
    const std::string tameTool = "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}";
    ChatRequest tame = {.messages = {{"system", "x"}, {"user", "x"}, tameCall, {"tool", "x"}, {"user", "x"}},
                        .tools = {tameTool}};
    for (ChatFormat format : {ChatFormat::Glm49bChat, ChatFormat::Glm40414, ChatFormat::Glm45, ChatFormat::Glm47,
                              ChatFormat::Intellect3, ChatFormat::Chatml, ChatFormat::Qwen3}) {
        const auto expected = countMarkers(format, tame);
        EXPECT_FALSE(expected.empty());
        EXPECT_EQ(countMarkers(format, evil), expected) << "format " << static_cast<int>(format);
    }
}

TEST(ChatFormat, NothinkOfTheTemplateIsOneToken) {
    const Tokenizer tokenizer = markerTokenizer({"[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "/nothink"});
    const auto last = [&](std::string content, std::optional<bool> thinking) {
        const auto chat = renderChat(
            ChatFormat::Glm45,
            {.messages = {{"user", std::move(content)}}, .addGenerationPrompt = false, .enableThinking = thinking});
        return tokenizer.encode(chat.segments).back();
    };
    EXPECT_EQ(last("hello", false), *tokenizer.specialId("/nothink"));
    EXPECT_EQ(last("hello/nothink", false), *tokenizer.specialId("/nothink"));
    EXPECT_EQ(last("hello/nothink", std::nullopt), 'k');
}

TEST(ChatFormat, StopsAtTheFamilysMarkers) {
    const Tokenizer tokenizer = markerTokenizer({"<|endoftext|>", "<|user|>"});
    const ChatStops stops = chatStops(ChatFormat::Glm45, tokenizer);
    EXPECT_EQ(stops.ids, (std::vector<int>{256, 257}));
    EXPECT_EQ(stops.texts, std::vector<std::string>{"<|observation|>"});
}

TEST(PythonJson, PrintsAsPython) {
    const auto round = [](const char* text, int indent = -1) { return toPythonJson(parseJson(text, "x"), indent); };
    EXPECT_EQ(round("{\"b\":1,\"a\":[true,null,1.0]}"), "{\"b\": 1, \"a\": [true, null, 1.0]}");
    EXPECT_EQ(round("{\"a\":1,\"b\":2,\"a\":3}"), "{\"a\": 3, \"b\": 2}");
    EXPECT_EQ(round("[1e3, 1e15, 1e16, 0.0001, 0.00001, -0.0, 123456789012345678901234567890]"),
              "[1000.0, 1000000000000000.0, 1e+16, 0.0001, 1e-05, -0.0, 123456789012345678901234567890]");
    EXPECT_EQ(round("\"\\u00e9\\n\\u0001/<\\ud83d\\ude00\""), "\"é\\n\\u0001/<😀\"");
    EXPECT_EQ(round("{\"a\":[1,2],\"b\":{},\"c\":[]}", 4),
              "{\n    \"a\": [\n        1,\n        2\n    ],\n    \"b\": {},\n    \"c\": []\n}");
    EXPECT_EQ(toPythonText(parseJson("[\"a\", \"it's\", null, true, {\"k\": 0.5}]", "x")),
              "['a', \"it's\", None, True, {'k': 0.5}]");
    EXPECT_THROW(parseJson("{", "x"), ConfigError);
    EXPECT_THROW(parseJson("1 2", "x"), ConfigError);
    EXPECT_THROW(parseJson(std::string(100'000, '['), "x"), ConfigError);
}

}  // namespace
}  // namespace dllama
