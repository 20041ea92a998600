#include <algorithm>
#include <vector>

#include "text/chat-families.hpp"
#include "text/chat-writer.hpp"

/// Which format a template text is. A template is taken for a format only if it has all of that format's parts, among
/// them what it writes to ask for an answer, and nothing that belongs to a sibling.
namespace dllama {
namespace {

using std::string_view;

struct Marks {
    ChatFormat format;
    std::vector<string_view> parts;   ///< all are in the text
    std::vector<string_view> absent;  ///< none is
};

constexpr string_view kQwenTools =
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with";
constexpr string_view kQwenPrompt = "{{- '<|im_start|>assistant\\n' }}";
constexpr string_view kLlamaPrompt = "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}";
constexpr string_view kLlamaDate = "Cutting Knowledge Date: December 2023";
constexpr string_view kThinkOff = "if (enable_thinking is defined and not enable_thinking) else";

const std::vector<Marks>& marks() {
    static const std::vector<Marks> kMarks = {
        {ChatFormat::Chatglm3, {"[gMASK]sop<|{{ message['role'] }}|>\n ", "<|assistant|>{% endif %}"}, {"[Round"}},
        {ChatFormat::Glm49bChat,
         {"[gMASK]<sop>", "你是一个名为 ChatGLM 的人工智能助手",
          "{% if add_generation_prompt %}<|assistant|>{% endif %}"},
         {"<think>"}},
        {ChatFormat::Glm40414,
         {"[gMASK]<sop>", "# 可用工具", "if message.role != 'system'",
          "{% if add_generation_prompt %}<|assistant|>{% endif %}"},
         {"<think>", "ChatGLM"}},
        {ChatFormat::GlmZ1, {"[gMASK]<sop>", "# 可用工具", "<|assistant|>\n<think>"}, {"<arg_key>", "ChatGLM"}},
        {ChatFormat::GlmEdge,
         {"'system' %}<|system|>\n{{ item['content'] }}", "'assistant' %}<|assistant|>\n{{ item['content'] }}",
          "{% endfor %}<|assistant|>"},
         {"[gMASK]", "tool", "add_generation_prompt"}},
        {ChatFormat::Glm45,
         {"[gMASK]<sop>", "<arg_key>{{ k }}</arg_key>\n", "<|assistant|>{{- '\\n<think></think>' if", kThinkOff,
          "'/nothink' if"},
         {"<|begin_of_image|>", "Reasoning Effort"}},
        {ChatFormat::Glm45v,
         {"[gMASK]<sop>", "<arg_key>{{ k }}</arg_key>\n", "<|assistant|>\n{{'<think></think>\\n' if", kThinkOff,
          "'/nothink' if", "<|begin_of_image|>"},
         {"Reasoning Effort"}},
        {ChatFormat::Glm47,
         {"[gMASK]<sop>", "<arg_key>{{ k }}</arg_key><arg_value>", "<|assistant|>{{- '</think>' if", kThinkOff,
          "'<think>' -}}"},
         {"/nothink", "Reasoning Effort"}},
        {ChatFormat::Glm52,
         {"[gMASK]<sop>", "Reasoning Effort: ", "<arg_key>{{ k }}</arg_key><arg_value>",
          "<|assistant|>{{- '<think></think>' if", kThinkOff, "'<think>' -}}"},
         {"tc_id_exists"}},
        {ChatFormat::Glm53Flash,
         {"[gMASK]<sop>", "Reasoning Effort: ", "<arg_key>{{ k }}</arg_key><arg_value>", "tc_id_exists",
          "<|assistant|>{{- '<think>' -}}"},
         {"enable_thinking"}},
        {ChatFormat::Intellect3,
         {"You are INTELLECT-3", "<function=", "<|im_start|>assistant\\n<think>'", "render_extra_keys"},
         {"You are Qwen"}},
        {ChatFormat::Llama2, {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}, {"tools", "<|"}},
        {ChatFormat::Llama3,
         {"<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n", "<|eot_id|>",
          "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'"},
         {"tool", "Today Date", "<think>", "You are"}},
        {ChatFormat::Llama31,
         {kLlamaDate, "26 Jul 2024", "tools_in_user_message", "builtin_tools", kLlamaPrompt},
         {"strftime_now"}},
        {ChatFormat::Llama32,
         {kLlamaDate, "26 Jul 2024", "tools_in_user_message", "strftime_now(\"%d %b %Y\")", kLlamaPrompt},
         {"builtin_tools"}},
        {ChatFormat::Chatml,
         {"'<|im_start|>' + message['role'] + '\\n' + message['content']", "not loop.last %}{{ '<|im_end|>",
          "messages[-1]['role'] != 'assistant'", "'<|im_start|>assistant\\n'"},
         {"tools", "think", "You are", "['role'] == 'system'", "['role'] != 'system'"}},
        {ChatFormat::ChatmlClosed,
         {"'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'",
          "if add_generation_prompt", "'<|im_start|>assistant\\n'"},
         {"tools", "think", "You are", "loop.first", "loop.last", "messages[", "['role'] == 'system'"}},
        {ChatFormat::Qwen3,
         {kQwenTools, "ns.last_query_index", kQwenPrompt, "enable_thinking is false",
          "{{- '<think>\\n\\n</think>\\n\\n' }}"},
         {"You are Qwen", "<function=", "vision", "You are a helpful"}},
        {ChatFormat::Qwen3Thinking2507,
         {kQwenTools, "ns.last_query_index", "{{- '<|im_start|>assistant\\n<think>\\n' }}"},
         {"enable_thinking", "You are Qwen", "<function=", "vision", "You are a helpful"}},
        {ChatFormat::Qwen3Instruct2507,
         {kQwenTools, "message.content is string", "<tool_response>", kQwenPrompt},
         {"think", "You are Qwen", "<function=", "vision", "You are a helpful"}},
        {ChatFormat::Qwen3Coder,
         {"You are Qwen, a helpful AI assistant that can interact with a computer", "the following functions:\\n\\n",
          "choose to call a function ONLY", "render_extra_keys", kQwenPrompt},
         {"think"}},
        {ChatFormat::Qwen3CoderGguf,
         {"You are Qwen, a helpful AI assistant that can interact with a computer", "the following tools:\\n\\n",
          "choose to call a tool ONLY", "render_extra_keys", kQwenPrompt},
         {"think"}},
        {ChatFormat::DeepseekR1Distill,
         {"<｜tool▁calls▁begin｜>", "ns.system_prompt = message['content']", "ns.is_output_first", "ns.is_first",
          "not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}"},
         {"is_first_sp", "is_last_user"}},
        {ChatFormat::MistralV1Old,
         {"{{ '[INST] ' + message['content'] + ' [/INST]' }}", "{{ message['content'] + eos_token}}",
          "Only user and assistant roles are supported!"},
         {"system", "tool"}},
        {ChatFormat::MistralV1,
         {"' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]'",
          "' ' + message['content'] + eos_token"},
         {"tool"}},
        {ChatFormat::MistralV3,
         {"\"[AVAILABLE_TOOLS] [\"", "\"[TOOL_CALLS] [\"", "\"[INST] \" + message[\"content\"] + \"[/INST]\"",
          "'[TOOL_RESULTS] {\"content\": '", "\"[INST] \" + system_message"},
         {"[SYSTEM_PROMPT]"}},
        {ChatFormat::SolarOpen,
         {"You are Solar Open 100B", "<|tool_call:begin|>", "think_render_option", "{{- \"<|begin|>assistant\" }}",
          "{{- \"<|begin|>assistant<|think|><|end|>\" }}"},
         {}},
    };
    return kMarks;
}

}  // namespace

std::optional<ChatFormat> detectChatFormat(string_view text) {
    const auto has = [&](string_view part) { return text.find(part) != string_view::npos; };
    std::optional<ChatFormat> found;
    for (const Marks& one : marks()) {
        if (!std::all_of(one.parts.begin(), one.parts.end(), has)) continue;
        if (std::any_of(one.absent.begin(), one.absent.end(), has)) continue;
        if (found) return std::nullopt;
        found = one.format;
    }
    return found;
}

ChatChoice chooseChatFormat(const TokenizerFile& file) {
    const chat::Family* named = file.chatFormat.empty() ? nullptr : chat::findFamily(file.chatFormat);
    if (!file.chatFormat.empty() && !named) throw FormatError("unknown chat format \"{}\"", file.chatFormat);
    if (!file.chatFormatReason.empty()) return {ChatFormat::None, file.chatFormatReason};
    if (named && file.chatFormatCompared) return {named->format};
    if (!file.chatTemplate.empty()) {
        if (const auto format = detectChatFormat(file.chatTemplate)) return {*format};
    }
    if (named && file.chatTemplate.empty()) return {named->format};
    // These models have no template that says what they are: their class does.
    if (named && file.chatFormat.starts_with("chatglm")) return {named->format};
    if (file.chatTemplate.empty()) return {ChatFormat::None, "the model has no chat template"};
    return {ChatFormat::None, "the model's chat template is none of those known here"};
}

}  // namespace dllama
