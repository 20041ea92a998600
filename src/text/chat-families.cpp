#include "text/chat-families.hpp"

#include <algorithm>

#include "text/chat-writer.hpp"

namespace dllama::chat {
namespace {

using std::string_view;

RenderedChat renderNone(ChatFormat, const ChatRequest& request) {
    Writer writer;
    for (const ChatMessage& message : request.messages) writer.text(message.content);
    return std::move(writer.result);
}

constexpr string_view kEop[] = {"<eop>"};
constexpr string_view kSlashS[] = {"</s>"};
constexpr string_view kChatglm3[] = {"</s>", "<|user|>", "<|observation|>"};
constexpr string_view kGlm[] = {"<|endoftext|>", "<|user|>", "<|observation|>"};
constexpr string_view kIm[] = {"<|im_end|>", "<|endoftext|>"};
constexpr string_view kLlama3[] = {"<|eot_id|>", "<|end_of_text|>"};
constexpr string_view kLlama31[] = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"};
constexpr string_view kDeepseek[] = {"<｜end▁of▁sentence｜>"};
constexpr string_view kSolar[] = {"<|calls|>", "<|flush|>", "<|endoftext|>"};

using enum ChatFormat;
constexpr string_view kThink = "<think>", kThinkEnd = "</think>";

constexpr Family kFamilies[] = {
    {None, "none", renderNone, {}, CallStyle::None, "", ""},
    {Chatglm, "chatglm", renderChatglm, kEop, CallStyle::None, "", ""},
    {Chatglm2, "chatglm2", renderChatglm, kSlashS, CallStyle::None, "", ""},
    {Chatglm3, "chatglm3", renderChatglm, kChatglm3, CallStyle::None, "", "", false, true},
    {Glm49bChat, "glm-4-9b-chat", renderGlm4, kGlm, CallStyle::GlmLines, kThink, kThinkEnd, false, true},
    {Glm40414, "glm4-0414", renderGlm4, kGlm, CallStyle::GlmLines, kThink, kThinkEnd, false, true},
    {GlmZ1, "glm-z1", renderGlm4, kGlm, CallStyle::GlmLines, kThink, kThinkEnd},
    {GlmEdge, "glm-edge", renderGlmEdge, kGlm, CallStyle::None, "", "", false, true},
    {Glm45, "glm-4.5", renderGlm45, kGlm, CallStyle::GlmTags, kThink, kThinkEnd, true, true},
    {Glm45v, "glm-4.5v", renderGlm45, kGlm, CallStyle::GlmTags, kThink, kThinkEnd, true, true},
    {Glm47, "glm-4.7", renderGlm45, kGlm, CallStyle::GlmTags, kThink, kThinkEnd, true},
    {Glm52, "glm-5.2", renderGlm5, kGlm, CallStyle::GlmTags, kThink, kThinkEnd, true},
    {Glm53Flash, "glm-5.3-flash", renderGlm5, kGlm, CallStyle::GlmTags, kThink, kThinkEnd, true},
    {Intellect3, "intellect-3", renderQwenCoder, kIm, CallStyle::QwenTags, kThink, kThinkEnd},
    {Llama2, "llama2", renderLlama2, kSlashS, CallStyle::None, "", ""},
    {Llama3, "llama3", renderLlama3, kLlama3, CallStyle::None, "", ""},
    {Llama31, "llama-3.1", renderLlama3, kLlama31, CallStyle::LlamaJson, "", ""},
    {Llama32, "llama-3.2", renderLlama3, kLlama31, CallStyle::LlamaJson, "", ""},
    {Chatml, "chatml", renderChatml, kIm, CallStyle::None, kThink, kThinkEnd},
    {ChatmlClosed, "chatml-closed", renderChatml, kIm, CallStyle::None, kThink, kThinkEnd},
    {Qwen3, "qwen3", renderQwen3, kIm, CallStyle::Hermes, kThink, kThinkEnd},
    {Qwen3Instruct2507, "qwen3-instruct-2507", renderQwen3, kIm, CallStyle::Hermes, kThink, kThinkEnd},
    {Qwen3Thinking2507, "qwen3-thinking-2507", renderQwen3, kIm, CallStyle::Hermes, kThink, kThinkEnd},
    {Qwen3Coder, "qwen3-coder", renderQwenCoder, kIm, CallStyle::QwenTags, kThink, kThinkEnd},
    {Qwen3CoderGguf, "qwen3-coder-gguf", renderQwenCoder, kIm, CallStyle::QwenTags, kThink, kThinkEnd},
    {DeepseekR1Distill, "deepseek-r1-distill", renderDeepseek, kDeepseek, CallStyle::Deepseek, kThink, kThinkEnd},
    {MistralV1Old, "mistral-v1-old", renderMistralV1, kSlashS, CallStyle::None, "", ""},
    {MistralV1, "mistral-v1", renderMistralV1, kSlashS, CallStyle::None, "", ""},
    {MistralV3, "mistral-v3", renderMistralV3, kSlashS, CallStyle::Mistral, "", ""},
    {SolarOpen, "solar-open", renderSolar, kSolar, CallStyle::Solar, "<|think|>", "<|end|>"},
};

/// distributed-llama's names, models whose template is another's, and older spellings.
constexpr struct {
    string_view name;
    ChatFormat format;
} kOtherNames[] = {
    {"deepSeek3", DeepseekR1Distill},
    {"llama3.1", Llama31},
    {"llama-3.3", Llama31},
    {"glm-4.7-flash", Glm47},
    {"glm-4.6", Glm45},
    {"glm-4.5-air", Glm45},
    {"glm-4.6v", Glm45v},
    {"glm-ocr", Glm45v},
};

}  // namespace

std::span<const Family> families() {
    return kFamilies;
}

const Family& familyOf(ChatFormat format) {
    const Family& found = kFamilies[static_cast<size_t>(format)];
    DLLAMA_CHECK(found.format == format);
    return found;
}

const Family* findFamily(string_view name) {
    for (const Family& family : kFamilies) {
        if (family.name == name) return &family;
    }
    for (const auto& other : kOtherNames) {
        if (other.name == name) return &familyOf(other.format);
    }
    return nullptr;
}

}  // namespace dllama::chat
