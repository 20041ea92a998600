#include "api/service.hpp"

#include <fmt/chrono.h>

#include "api/json-fields.hpp"
#include "api/json-output.hpp"
#include "text/utf8.hpp"

namespace dllama::api {

namespace {

Json modelJson(const ServedModel& model) {
    return {{"id", model.id},
            {"object", "model"},
            {"created", model.created},
            {"owned_by", "dllama"},
            {"type", "model"},
            {"display_name", model.id},
            {"created_at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(model.created)))},
            {"meta", {{"n_ctx_train", model.contextLength}, {"n_vocab", model.vocabSize}}},
            // vLLM's name, which some clients look for.
            {"max_model_len", model.contextLength}};
}

}  // namespace

std::string modelBody(const ServedModel& model) {
    return dump(modelJson(model));
}

std::string modelsBody(const std::vector<ServedModel>& models) {
    Json data = Json::array();
    for (const ServedModel& model : models) data.push_back(modelJson(model));
    Json body = {{"object", "list"}, {"data", std::move(data)}, {"has_more", false}};
    body["first_id"] = models.empty() ? Json() : Json(models.front().id);
    body["last_id"] = models.empty() ? Json() : Json(models.back().id);
    return dump(body);
}

TokenizeRequest readTokenize(std::string_view text) {
    const PythonValue body = parseBody(text);
    const Fields fields(body);
    TokenizeRequest request;
    request.content = fields.requiredText("content");
    request.addSpecial = fields.flag("add_special").value_or(false);
    request.parseSpecial = fields.flag("parse_special").value_or(true);
    request.withPieces = fields.flag("with_pieces").value_or(false);
    return request;
}

std::string tokensBody(const std::vector<int>& tokens) {
    return dump({{"tokens", tokens}});
}

std::string piecesBody(const std::vector<std::pair<int, std::string>>& pieces) {
    Json tokens = Json::array();
    for (const auto& [id, piece] : pieces) {
        Json shown = piece;
        if (!isValidUtf8(piece)) {
            shown = Json::array();
            for (char c : piece) shown.push_back(static_cast<unsigned char>(c));
        }
        tokens.push_back({{"id", id}, {"piece", std::move(shown)}});
    }
    return dump({{"tokens", std::move(tokens)}});
}

std::vector<int> readDetokenize(std::string_view text, const ReaderOptions& options) {
    const PythonValue body = parseBody(text);
    const Items tokens = Fields(body).requiredList("tokens");
    std::vector<int> ids;
    ids.reserve(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++)
        ids.push_back(static_cast<int>(integerOf(tokens[i], tokens.path, 0, options.vocabSize - 1)));
    return ids;
}

std::string detokenizedBody(const std::string& text) {
    return dump({{"content", text}});
}

std::string countTokensBody(int nTokens) {
    return dump({{"input_tokens", nTokens}});
}

std::string propsBody(const ServerProperties& properties) {
    const SamplingFields& defaults = properties.defaults;
    Json params = Json::object();
    if (defaults.temperature) params["temperature"] = *defaults.temperature;
    if (defaults.topP) params["top_p"] = *defaults.topP;
    if (defaults.topK) params["top_k"] = *defaults.topK;
    if (defaults.minP) params["min_p"] = *defaults.minP;
    if (defaults.repetitionPenalty) params["repeat_penalty"] = *defaults.repetitionPenalty;
    return dump({{"default_generation_settings", {{"n_ctx", properties.contextLength}, {"params", std::move(params)}}},
                 {"total_slots", properties.nParallel},
                 {"model_alias", properties.modelName},
                 {"model_path", properties.modelName},
                 {"chat_template", properties.chatTemplate},
                 {"modalities", {{"vision", false}, {"audio", false}}},
                 {"build_info", properties.buildInfo}});
}

ApiError embeddingsNotOffered() {
    return {ErrorKind::NotSupported, "", "embeddings are not offered: the model generates text only"};
}

}  // namespace dllama::api
