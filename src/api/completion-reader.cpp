#include "api/api-error.hpp"
#include "api/request-parts.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

std::vector<int> readTokens(const Items& ids, const ReaderOptions& options) {
    std::vector<int> tokens;
    tokens.reserve(ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
        // The path is for the message only: a prompt has many ids.
        const bool plain = ids[i].type == Type::Number && ids[i].text.size() < 10;
        tokens.push_back(
            static_cast<int>(integerOf(ids[i], plain ? ids.path : ids.pathOf(i), 0, options.vocabSize - 1)));
    }
    if (tokens.empty()) throw invalidRequest(ids.path, "{} is empty, must hold at least one token id", ids.path);
    return tokens;
}

/// A text, a list of texts, a list of token ids, or a list of such lists.
std::vector<Prompt> readPrompts(const Fields& fields, const ReaderOptions& options) {
    const PythonValue* value = fields.find("prompt");
    if (!value) throw invalidRequest("prompt", "prompt is missing");
    if (value->isString()) return {value->text};
    if (value->type != Type::List)
        throw invalidRequest("prompt", "prompt is {}, must be a text, a list of texts or a list of token ids",
                             shown(*value));
    const Items items{"prompt", &value->items};
    if (items.size() == 0) throw invalidRequest("prompt", "prompt is empty, must hold at least one text or token id");
    if (items[0].type == Type::Number) return {readTokens(items, options)};
    if (items.size() > static_cast<size_t>(options.maxChoices))
        throw invalidRequest("prompt", "prompt has {} entries, must be at most {}", items.size(), options.maxChoices);
    std::vector<Prompt> prompts;
    for (size_t i = 0; i < items.size(); i++) {
        if (items[i].isString())
            prompts.emplace_back(items[i].text);
        else if (items[i].type == Type::List)
            prompts.emplace_back(readTokens({items.pathOf(i), &items[i].items}, options));
        else
            throw invalidRequest(items.pathOf(i), "{} is {}, must be a text or a list of token ids", items.pathOf(i),
                                 shown(items[i]));
    }
    return prompts;
}

}  // namespace

GenerationRequest readCompletion(std::string_view text, const ReaderOptions& options) {
    const PythonValue body = parseBody(text);
    const Fields fields(body);
    constexpr int kMaxTokens = 16;  // OpenAI's default
    GenerationRequest request;
    request.dialect = Dialect::Completion;
    request.model = fields.text("model").value_or("");
    request.prompts = readPrompts(fields, options);
    if (!fields.text("suffix").value_or("").empty())
        throw invalidRequest("suffix", "suffix: the model does not fill in the middle");
    request.sampling = readSampling(fields, options);
    request.n = readChoices(fields, request.prompts.size(), options);
    request.maxTokens = readTokenLimit(fields, "max_tokens").value_or(kMaxTokens);
    request.minTokens = static_cast<int>(fields.integer("min_tokens", 0, 1 << 30).value_or(0));
    request.ignoreEos = fields.flag("ignore_eos").value_or(false);
    request.stop = readStops(fields, "stop");
    if (const std::optional<int64_t> logprobs = fields.integer("logprobs", 0, 5)) {
        request.logprobs = true;
        request.topLogprobs = static_cast<int>(*logprobs);
    }
    request.echo = fields.flag("echo").value_or(false);
    if (request.echo && request.logprobs)
        throw invalidRequest("echo", "echo together with logprobs is not supported: prompts are not scored");
    if (const std::optional<Fields> format = fields.object("response_format"))
        request.format = readFormat(*format, format->object("json_schema"));
    readStreaming(fields, request);
    return request;
}

}  // namespace dllama::api
