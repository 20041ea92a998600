#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "text-reference.hpp"
#include "text/chat-output.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

using nlohmann::ordered_json;

struct Style {
    const char* file;
    ChatFormat format;
};

std::vector<std::string> toolsOf(const ordered_json& one) {
    std::vector<std::string> tools;
    if (one.value("tool_choice", ordered_json()) == "none" || !one.contains("tools")) return tools;
    for (const auto& tool : one["tools"]) tools.push_back(tool.dump());
    return tools;
}

/// The answer that `text` is read as when it comes in `pieces`. Also checks what holds for every stream.
ordered_json parsed(ChatFormat format, const ordered_json& one, const std::vector<std::string>& pieces) {
    ChatOutputParser parser(format, toolsOf(one), one.value("prompt_ended_in_think", false));
    const bool cutOff = one.value("truncated", false);
    AnswerCollector collector;
    int nCalls = 0;
    const auto add = [&](const std::vector<OutputDelta>& deltas) {
        collector.add(deltas);
        for (const OutputDelta& delta : deltas) {
            if (delta.kind == OutputDelta::Kind::Call) {
                EXPECT_EQ(delta.index, nCalls++);
            }
        }
    };
    for (const std::string& piece : pieces) add(parser.push(piece));
    add(parser.finish(cutOff));
    const ParsedAnswer answer = collector.answer(cutOff);
    ordered_json result;
    result["reasoning_content"] = answer.reasoning ? ordered_json(*answer.reasoning) : ordered_json();
    result["content"] = answer.content ? ordered_json(*answer.content) : ordered_json();
    result["tool_calls"] = ordered_json::array();
    for (const ToolCall& call : answer.calls)
        result["tool_calls"].push_back({{"name", call.name}, {"arguments", ordered_json::parse(call.arguments)}});
    result["finish_reason"] = answer.finishReason;
    return result;
}

/// Byte for byte: 1 differs from 1.0 and the order of keys counts.
bool isExpected(const ordered_json& one, const ordered_json& actual) {
    if (actual.dump() == one.at("expect").dump()) return true;
    for (const auto& other : one.value("also_accept", ordered_json::array())) {
        if (actual.dump() == other.dump()) return true;
    }
    return false;
}

std::vector<std::string> characters(const std::string& text) {
    std::vector<std::string> all;
    for (std::string_view rest = text; !rest.empty();) {
        const size_t n = utf8Step(rest).length;
        all.emplace_back(rest.substr(0, n));
        rest.remove_prefix(n);
    }
    return all;
}

std::string unhex(const std::string& text) {
    std::string bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
        bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
    return bytes;
}

class ChatOutput : public testing::TestWithParam<Style> {};

TEST_P(ChatOutput, ReadsEveryCaseHoweverItIsCut) {
    const std::string file = std::string(GetParam().file) + ".json";
    const auto cases = ordered_json::parse(test::readText(DLLAMA_TEST_DATA "/chat/parse-" + file));
    ASSERT_GE(cases.size(), 30u);
    for (const auto& one : cases) {
        SCOPED_TRACE(one.at("name").get<std::string>());
        const std::string text = one.at("text");
        const ordered_json whole = parsed(GetParam().format, one, {text});
        EXPECT_TRUE(isExpected(one, whole)) << whole.dump() << "\n instead of\n" << one["expect"].dump();
        const std::vector<std::string> each = characters(text);
        EXPECT_EQ(parsed(GetParam().format, one, each).dump(), whole.dump()) << "character by character";
        std::string before;
        for (const std::string& character : each) {
            before += character;
            ASSERT_EQ(parsed(GetParam().format, one, {before, text.substr(before.size())}).dump(), whole.dump())
                << "cut behind " << before.size() << " bytes";
        }
    }
}

TEST_P(ChatOutput, ReadsTheReferenceStreams) {
    const auto shared = test::sharedFolder();
    if (!shared) GTEST_SKIP() << "the folder ../shared with the reference streams is absent";
    const std::string file = std::string(GetParam().file) + ".json";
    const auto path = *shared / "chat" / ("stream-" + file);
    const auto data = ordered_json::parse(test::readText(path));
    for (const auto& one : data.at("cases")) {
        SCOPED_TRACE(one.at("name").get<std::string>());
        for (const char* key : {"pieces", "byte_pieces"}) {
            for (const auto& list : one.value(key, ordered_json::array())) {
                std::vector<std::string> pieces;
                for (const auto& piece : list) {
                    const std::string text = piece;
                    pieces.push_back(key[0] == 'b' ? unhex(text) : text);
                }
                const ordered_json actual = parsed(GetParam().format, one, pieces);
                EXPECT_TRUE(isExpected(one, actual)) << actual.dump() << "\n instead of\n" << one["expect"].dump();
            }
        }
    }
}

constexpr Style kStyles[] = {
    {"deepseek", ChatFormat::DeepseekR1Distill},
    {"glm4", ChatFormat::Glm40414},
    {"glm45", ChatFormat::Glm45},
    {"glm45-more", ChatFormat::Glm45},
    {"glm47", ChatFormat::Glm47},
    {"glm47-more", ChatFormat::Glm52},
    {"hermes", ChatFormat::Qwen3},
    {"llama31", ChatFormat::Llama31},
    {"qwen3_coder", ChatFormat::Intellect3},
    {"qwen3_coder-more", ChatFormat::Qwen3Coder},
};
INSTANTIATE_TEST_SUITE_P(Styles, ChatOutput, testing::ValuesIn(kStyles), [](const auto& style) {
    std::string name = style.param.file;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
});

const char* const kTools =
    R"([{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}])";

ordered_json read(ChatFormat format, const std::string& text) {
    ordered_json one = {{"tools", ordered_json::parse(kTools)}};
    const ordered_json whole = parsed(format, one, {text});
    EXPECT_EQ(parsed(format, one, characters(text)).dump(), whole.dump());
    return whole;
}

TEST(ChatOutputFormats, Mistral) {
    const auto two = read(
        ChatFormat::MistralV3,
        R"(Yes. [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "123456789"}, {"name": "g", "arguments": {}}])");
    EXPECT_EQ(two["content"], "Yes.");
    EXPECT_EQ(two["tool_calls"].dump(), R"([{"name":"f","arguments":{"a":1}},{"name":"g","arguments":{}}])");
    EXPECT_EQ(read(ChatFormat::MistralV3, "[TOOL_CALLS] none")["content"], "[TOOL_CALLS] none");
}

TEST(ChatOutputFormats, SolarOpen) {
    const auto call = read(ChatFormat::SolarOpen,
                           "<|think|>I must.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5"
                           "<|tool_call:name|>f<|tool_call:args|>{\"a\": 1}<|tool_call:end|>");
    EXPECT_EQ(call["reasoning_content"], "I must.");
    EXPECT_TRUE(call["content"].is_null());
    EXPECT_EQ(call["tool_calls"].dump(), R"([{"name":"f","arguments":{"a":1}}])");
    ChatOutputParser parser(ChatFormat::SolarOpen, {}, false);
    AnswerCollector collector;
    for (const std::string& c : characters("<|think|>r<|end|><|begin|>assistant<|content|>Hello.<|end|>")) {
        EXPECT_FALSE(parser.ended());
        collector.add(parser.push(c));
    }
    EXPECT_TRUE(parser.ended());
    EXPECT_EQ(collector.answer(false).content, "Hello.");
}

TEST(ChatOutputFormats, WhatIsCertainComesAtOnce) {
    ChatOutputParser parser(ChatFormat::Glm47, {R"({"function": {"name": "f"}})"}, true);
    EXPECT_EQ(parser.push("Let me").at(0), (OutputDelta{OutputDelta::Kind::Reasoning, "Let me", "", 0}));
    EXPECT_EQ(parser.push(" see</think>A").size(), 2u);
    EXPECT_EQ(parser.push("nswer <").at(0).text, "nswer");
    EXPECT_EQ(parser.push("b>").at(0).text, " <b>");
    EXPECT_TRUE(parser.push(" <tool_call>f").empty());
    EXPECT_EQ(parser.push("</tool_call>").at(0), (OutputDelta{OutputDelta::Kind::Call, "{}", "f", 0}));
}

/// A model that writes of marks in its thoughts and goes on thinking is not held back until it has done.
TEST(ChatOutputFormats, AMarkInAThoughtDoesNotStopTheStream) {
    ChatOutputParser parser(ChatFormat::Glm47, {R"({"function": {"name": "f"}})"}, true);
    std::string told;
    for (const OutputDelta& delta : parser.push("Use <tool_call>not a name</tool_call> or so")) told += delta.text;
    for (int i = 0; i < 100; i++) {
        for (const OutputDelta& delta : parser.push(" and on")) told += delta.text;
    }
    EXPECT_TRUE(told.starts_with("Use <tool_call>not a name</tool_call> or so and on"));
    EXPECT_GT(told.size(), 700u);
}

}  // namespace
}  // namespace dllama
