#include "server/prepare.hpp"

#include <algorithm>
#include <random>

#include "api/api-error.hpp"

namespace dllama {

namespace {

using api::ApiError;
using api::Dialect;

bool isServed(const ServedModel& model, const std::string& name) {
    return name.empty() || std::any_of(model.names.begin(), model.names.end(),
                                       [&](const std::string& served) { return served == "*" || served == name; });
}

PreparedPrompt prepareChat(const ChatRequest& chat, const api::GenerationRequest& request, const ServedModel& model) {
    PreparedPrompt prompt;
    const RenderedChat rendered = renderChat(model.format, chat);
    // Without a chat format the text begins as the tokenizer says a text begins.
    prompt.tokens = model.format == ChatFormat::None
                        ? model.tokenizer.encode(rendered.text(), SpecialTokens::Parse, true)
                        : model.tokenizer.encode(rendered.segments);
    prompt.rules = {.format = model.format,
                    .insideThink = rendered.endsInsideThink,
                    .formatStops = model.stops.texts,
                    .stops = request.stop};
    if (request.tools.choice != api::ToolUse::Choice::None) prompt.rules.tools = chat.tools;
    return prompt;
}

PreparedPrompt preparePrompt(const api::Prompt& from, const api::GenerationRequest& request, const ServedModel& model) {
    if (const auto* chat = std::get_if<ChatRequest>(&from)) return prepareChat(*chat, request, model);
    PreparedPrompt prompt;
    prompt.rules = {.format = model.format, .isPlain = true, .stops = request.stop};
    if (const auto* text = std::get_if<std::string>(&from))
        prompt.tokens = model.tokenizer.encode(*text, SpecialTokens::Parse, true);
    else
        prompt.tokens = std::get<std::vector<int>>(from);
    return prompt;
}

/// What a client may ask for and would not get: it is told rather than given something else.
void refuseWhatIsNotDone(const api::GenerationRequest& request) {
    using Choice = api::ToolUse::Choice;
    if (request.format.kind != api::ResponseFormat::Kind::Text)
        throw api::invalidRequest("response_format", "response_format: this server does not enforce it, only text");
    if (request.tools.choice == Choice::Required || request.tools.choice == Choice::Named)
        throw api::invalidRequest("tool_choice", "tool_choice: this server enforces no call, only auto and none");
    if (request.reasoningBudget)
        throw api::invalidRequest("thinking_budget", "this server does not limit the tokens of thinking");
    if (request.echo) throw api::invalidRequest("echo", "echo is true: this server does not repeat the prompt");
}

SamplingParams samplingOf(const api::SamplingFields& fields, SamplingParams sampling) {
    if (fields.temperature) sampling.temperature = *fields.temperature;
    if (fields.topP) sampling.topP = *fields.topP;
    if (fields.minP) sampling.minP = *fields.minP;
    if (fields.topK) sampling.topK = *fields.topK;
    if (fields.repetitionPenalty) sampling.repetitionPenalty = *fields.repetitionPenalty;
    sampling.presencePenalty = fields.presencePenalty;
    sampling.frequencyPenalty = fields.frequencyPenalty;
    sampling.logitBias = fields.logitBias;
    sampling.seed = fields.seed ? *fields.seed : std::random_device{}();
    return sampling;
}

}  // namespace

PreparedRequest prepareRequest(api::GenerationRequest request, const ServedModel& model) {
    if (!isServed(model, request.model)) throw api::modelNotFound(request.model);
    refuseWhatIsNotDone(request);
    PreparedRequest prepared;
    try {
        for (const api::Prompt& prompt : request.prompts) {
            prepared.prompts.push_back(preparePrompt(prompt, request, model));
            const int n = static_cast<int>(prepared.prompts.back().tokens.size());
            if (n == 0) throw api::invalidRequest("prompt", "the prompt is empty");
            if (n >= model.contextLength) throw api::contextTooLong(n, model.contextLength);
            prepared.nPromptTokens += n;
        }
    } catch (const ConfigError& error) {
        throw ApiError(api::ErrorKind::InvalidRequest, "messages", error.what());
    }
    prepared.request = std::move(request);
    return prepared;
}

Request PreparedRequest::engineRequest(const ServedModel& model, int choice) const {
    const PreparedPrompt& prompt = prompts[static_cast<size_t>(choice / request.n)];
    Request made;
    made.tokens = prompt.tokens;
    made.sampling = samplingOf(request.sampling, model.sampling);
    // Answers of one request differ although their seed is the same.
    made.sampling.seed += static_cast<uint64_t>(choice % request.n);
    made.stop.maxTokens = request.maxTokens.value_or(-1);
    if (!request.ignoreEos) made.stop.stopTokens = model.stops.ids;
    made.stop.minTokens = request.minTokens;
    if (request.logprobs) made.nLogprobs = request.topLogprobs;
    return made;
}

}  // namespace dllama
