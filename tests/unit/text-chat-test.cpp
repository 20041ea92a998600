#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/errors.hpp"
#include "text-reference.hpp"
#include "text/chat-format.hpp"
#include "text/chat-request.hpp"
#include "text/python-json.hpp"

namespace dllama {
namespace {

using nlohmann::ordered_json;

constexpr CalendarDate kDateOfCases = {2025, 7, 15};

ordered_json readCases(const std::filesystem::path& path) {
    auto data = ordered_json::parse(test::readText(path));
    return data.is_object() ? data.at("cases") : data;
}

/// Renders all cases of a family as the client sends them, and compares.
void checkCases(const std::string& family, const ordered_json& cases) {
    const ChatFormat format = chatFormatByName(family);
    for (const auto& one : cases) {
        SCOPED_TRACE(family + " " + one.at("name").get<std::string>());
        const auto render = [&] {
            ChatRequest request = readChatRequest(format, parseJson(one.dump(), "the case"));
            request.today = kDateOfCases;
            return renderChat(format, request).text();
        };
        if (one.contains("rendered") && one["rendered"].is_string()) {
            EXPECT_EQ(render(), one["rendered"].get<std::string>());
            continue;
        }
        try {
            render();
            ADD_FAILURE() << "this request is to be refused";
        } catch (const ConfigError& error) {
            EXPECT_EQ(error.what(), one.at("error").get<std::string>());
        }
    }
}

constexpr const char* kFamilies[] = {"chatml",
                                     "deepseek-r1-distill",
                                     "glm-4-9b-chat",
                                     "glm-4.5",
                                     "glm-4.5v",
                                     "glm-4.7",
                                     "glm-4.7-flash",
                                     "glm-5.2",
                                     "glm-5.3-flash",
                                     "glm-edge",
                                     "glm4-0414",
                                     "intellect-3",
                                     "llama-3.1",
                                     "llama-3.2",
                                     "llama-3.3",
                                     "mistral-v1",
                                     "mistral-v1-old",
                                     "mistral-v3",
                                     "qwen3",
                                     "qwen3-coder",
                                     "qwen3-coder-gguf",
                                     "qwen3-instruct-2507",
                                     "qwen3-thinking-2507",
                                     "solar-open"};

class ChatFamily : public testing::TestWithParam<const char*> {};

TEST_P(ChatFamily, RendersAsThePublishersTemplate) {
    const std::string file = std::string("render-").append(GetParam()).append(".json");
    const ordered_json cases = readCases(std::filesystem::path(DLLAMA_TEST_DATA "/chat") / file);
    ASSERT_GE(cases.size(), 11u);
    checkCases(GetParam(), cases);
}
INSTANTIATE_TEST_SUITE_P(Published, ChatFamily, testing::ValuesIn(kFamilies), [](const auto& family) {
    std::string name = family.param;
    std::replace_if(
        name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
    return name;
});

std::optional<ChatFormat> detectFile(const std::string& name) {
    return detectChatFormat(test::readText(DLLAMA_TEST_DATA "/chat/templates/" + name));
}

TEST(ChatFormat, IsToldFromTheTemplatesText) {
    const ordered_json cases = readCases(DLLAMA_TEST_DATA "/chat/detect.json");
    ASSERT_GE(cases.size(), 20u);
    for (const auto& one : cases) {
        const auto found = detectFile(one.at("template"));
        ASSERT_TRUE(found.has_value()) << one["template"];
        EXPECT_EQ(*found, chatFormatByName(one.at("family").get<std::string>())) << one["template"];
    }
}

TEST(ChatFormat, TemplatesOfOthersAreNotTaken) {
    const auto with = [](const char* file, const std::string& from, const std::string& to) {
        std::string text = test::readText(DLLAMA_TEST_DATA "/chat/templates/" + std::string(file));
        const size_t at = text.rfind(from);
        EXPECT_NE(at, std::string::npos) << file;
        return detectChatFormat(text.replace(at, from.size(), to));
    };
    EXPECT_FALSE(detectChatFormat(""));
    EXPECT_FALSE(detectChatFormat("{{ messages }}"));
    EXPECT_FALSE(detectChatFormat("{% for m in messages %}[INST]{% endfor %}"));
    EXPECT_FALSE(detectChatFormat("<|im_start|> enable_thinking"));
    // The same family with another prompt for its answers is another format.
    EXPECT_FALSE(with("glm-4.7.jinja", "'<think>' -}}", "'' -}}"));
    EXPECT_FALSE(with("glm-4.5.jinja", "'\\n<think></think>' if", "'' if"));
    EXPECT_FALSE(with("qwen3-coder.jinja", "assistant\\n", "assistant\\n<think>"));
    EXPECT_FALSE(with("qwen3-instruct-2507.jinja", "assistant\\n", "assistant\\n<think>\\n"));
    EXPECT_FALSE(with("deepseek-r1-distill.jinja", "<think>\\n", ""));
    EXPECT_FALSE(with("glm-edge.jinja", "<|assistant|>", ""));
}

TEST(ChatFormat, RendersEveryReferenceCase) {
    const auto shared = test::sharedFolder();
    if (!shared) GTEST_SKIP() << "the folder ../shared with the published templates is absent";
    for (const auto& one : readCases(*shared / "chat/detect.json")) {
        const std::string renders = one.at("renders_in");
        const ordered_json data = ordered_json::parse(test::readText(*shared / "chat" / renders));
        for (const std::string& text : {test::readText(*shared / "chat" / one.at("template").get<std::string>()),
                                        data.at("template").get<std::string>()}) {
            const auto found = detectChatFormat(text);
            ASSERT_TRUE(found.has_value()) << renders;
            EXPECT_EQ(*found, chatFormatByName(data.at("family").get<std::string>()));
        }
        checkCases(data.at("family"), data.at("cases"));
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
    EXPECT_TRUE(inside(ChatFormat::Glm52, std::nullopt));
    EXPECT_FALSE(inside(ChatFormat::Glm52, false));
    EXPECT_TRUE(inside(ChatFormat::Glm53Flash, false));
    EXPECT_TRUE(inside(ChatFormat::Qwen3Thinking2507, false));
    EXPECT_TRUE(inside(ChatFormat::DeepseekR1Distill, std::nullopt));
    EXPECT_FALSE(inside(ChatFormat::Qwen3Coder, std::nullopt));
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
    EXPECT_EQ(chatFormatByName("deepSeek3"), ChatFormat::DeepseekR1Distill);
    EXPECT_EQ(chatFormatByName("llama3"), ChatFormat::Llama3);
}

TEST(ChatFormat, ChoosesByTemplateThenByName) {
    const auto choose = [](const char* name, const std::string& text, bool compared = false, const char* reason = "") {
        TokenizerFile file;
        file.chatFormat = name;
        file.chatTemplate = text;
        file.chatFormatCompared = compared;
        file.chatFormatReason = reason;
        return chooseChatFormat(file);
    };
    const std::string qwen3 = test::readText(DLLAMA_TEST_DATA "/chat/templates/qwen3.jinja");
    EXPECT_EQ(choose("llama3", "").format, ChatFormat::Llama3);
    EXPECT_EQ(choose("chatml", qwen3).format, ChatFormat::Qwen3);
    EXPECT_EQ(choose("", qwen3).format, ChatFormat::Qwen3);
    EXPECT_EQ(choose("chatml", "{{ x }}").format, ChatFormat::None);
    EXPECT_EQ(choose("chatml", "{{ x }}").reason, "the model's chat template is none of those known here");
    EXPECT_EQ(choose("chatml", "{{ x }}", true).format, ChatFormat::Chatml);
    EXPECT_EQ(choose("chatglm3", "{{ x }}").format, ChatFormat::Chatglm3);
    EXPECT_EQ(choose("", "").reason, "the model has no chat template");
    EXPECT_EQ(choose("", qwen3, false, "it differs").format, ChatFormat::None);
    EXPECT_EQ(choose("", qwen3, false, "it differs").reason, "it differs");
    EXPECT_THROW(choose("glm-5", ""), FormatError);
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
    for (ChatFormat format :
         {ChatFormat::Glm49bChat, ChatFormat::Glm40414, ChatFormat::Glm45, ChatFormat::Glm47, ChatFormat::Glm45v,
          ChatFormat::Glm52, ChatFormat::Glm53Flash, ChatFormat::GlmEdge, ChatFormat::Intellect3,
          ChatFormat::Qwen3Coder, ChatFormat::Qwen3CoderGguf, ChatFormat::Chatml, ChatFormat::Qwen3,
          ChatFormat::Qwen3Instruct2507, ChatFormat::Qwen3Thinking2507}) {
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
