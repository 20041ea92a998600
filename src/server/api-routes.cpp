#include "server/api-routes.hpp"

#include <openssl/crypto.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <nlohmann/json.hpp>

#include "api/request-reader.hpp"
#include "base/json.hpp"
#include "server/web-files.hpp"
namespace dllama {

namespace {

using api::ApiError;
using api::Dialect;
using api::ErrorKind;
using Json = nlohmann::ordered_json;

/// Threads that parse requests and encode prompts beside the engine's.
constexpr int kWorkers = 2;

Dialect dialectOf(std::string_view path) {
    if (path.starts_with("/v1/messages")) return Dialect::Messages;
    if (path == "/v1/completions") return Dialect::Completion;
    return path == "/v1/responses" ? Dialect::Responses : Dialect::Chat;
}

std::string dump(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool isSecretEqual(std::string_view a, std::string_view b) {
    return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

const std::vector<ApiRoutes::Route>& ApiRoutes::routes() {
    static const std::vector<Route> all = {
        {"POST", "/v1/chat/completions", &ApiRoutes::generate},
        {"POST", "/v1/completions", &ApiRoutes::generate},
        {"GET", "/v1/models", &ApiRoutes::models},
        {"POST", "/v1/embeddings", &ApiRoutes::embeddings},
        {"GET", "/health", &ApiRoutes::health, true},
        {"GET", "/props", &ApiRoutes::props},
        {"GET", "/slots", &ApiRoutes::slots},
        {"POST", "/tokenize", &ApiRoutes::tokenize},
        {"POST", "/detokenize", &ApiRoutes::detokenize},
    };
    return all;
}

ApiRoutes::ApiRoutes(const ApiServerOptions& options) : options_(options), workers_(kWorkers) {}

ApiRoutes::~ApiRoutes() {
    workers_.join();
}

void ApiRoutes::setModel(const ServedModel* model, EngineThread* engine) {
    model_ = model;
    engine_ = engine;
}

HttpResponse ApiRoutes::errorResponse(Dialect dialect, const ApiError& error) const {
    HttpResponse response{error.status(), "application/json", api::errorBody(dialect, error)};
    if (response.status == 429 || response.status == 503) response.headers.emplace_back("Retry-After", "1");
    return response;
}

HttpHeaders ApiRoutes::corsHeaders(const HttpRequest& request) const {
    const std::string_view origin = request.header("origin");
    if (origin.empty() || options_.corsOrigin.empty()) return {};
    if (options_.corsOrigin != "*" && options_.corsOrigin != origin) return {};
    return {{"Access-Control-Allow-Origin", options_.corsOrigin}, {"Vary", "Origin"}};
}

bool ApiRoutes::hasKey(const HttpRequest& request) const {
    std::string_view key = request.header("authorization");
    if (key.starts_with("Bearer ") || key.starts_with("bearer "))
        key.remove_prefix(7);
    else
        key = request.header("x-api-key");
    bool found = false;
    for (const std::string& known : options_.keys) found = isSecretEqual(key, known) || found;
    return found;
}

bool ApiRoutes::admit(const HttpRequest& head, HttpResponse& refusal) {
    const auto refuse = [&](const ApiError& error) {
        refusal = errorResponse(dialectOf(head.path), error);
        return false;
    };
    if (head.method == "OPTIONS" && !corsHeaders(head).empty()) return true;
    const Route* route = nullptr;
    std::string allowed;
    for (const Route& candidate : routes()) {
        const bool isBelow = std::string_view(candidate.path) == "/v1/models" && head.path.starts_with("/v1/models/");
        if (head.path != candidate.path && !isBelow) continue;
        allowed += (allowed.empty() ? "" : ", ") + std::string(candidate.method);
        if (head.method == candidate.method || (head.method == "HEAD" && std::string_view(candidate.method) == "GET"))
            route = &candidate;
    }
    if (webFile(head.path) != nullptr) {
        allowed = "GET";
        static const Route kPage{"GET", "/", nullptr, true};
        if (head.method == "GET" || head.method == "HEAD") route = &kPage;
    }
    if (allowed.empty()) return refuse({ErrorKind::NotFound, "", fmt::format("there is no path {}", head.path)});
    if (route == nullptr) {
        refuse({ErrorKind::WrongMethod, "", fmt::format("{} is asked for with {}", head.path, allowed)});
        refusal.headers.emplace_back("Allow", allowed);
        return false;
    }
    if (!options_.keys.empty() && !route->isOpen && !hasKey(head))
        return refuse({ErrorKind::Authentication, "", "the API key is missing or wrong"});
    return true;
}

HttpResponse ApiRoutes::faulty(int status, const std::string& path, const std::string& message) {
    const ErrorKind kind = status == 413   ? ErrorKind::TooLarge
                           : status == 431 ? ErrorKind::HeadersTooLarge
                           : status == 503 ? ErrorKind::Unavailable
                                           : ErrorKind::InvalidRequest;
    return errorResponse(dialectOf(path), {kind, "", message});
}

namespace {

/// Adds headers to whatever is answered, and tells when the exchange is over.
class CountedExchange final : public HttpExchange {
  public:
    CountedExchange(std::shared_ptr<HttpExchange> inner, HttpHeaders headers, int& count)
        : inner_(std::move(inner)), headers_(std::move(headers)), count_(count) {
        count_++;
    }
    ~CountedExchange() override { count_--; }
    void send(HttpResponse response) override { inner_->send(withHeaders(std::move(response))); }
    void start(HttpResponse head) override { inner_->start(withHeaders(std::move(head))); }
    void write(std::string part) override { inner_->write(std::move(part)); }
    void end() override { inner_->end(); }
    size_t nUnsent() const override { return inner_->nUnsent(); }
    void onGone(std::function<void()> gone) override { inner_->onGone(std::move(gone)); }

  private:
    HttpResponse withHeaders(HttpResponse response) {
        response.headers.insert(response.headers.end(), headers_.begin(), headers_.end());
        return response;
    }
    const std::shared_ptr<HttpExchange> inner_;
    const HttpHeaders headers_;
    int& count_;
};

}  // namespace

void ApiRoutes::handle(HttpRequest request, Exchange inner) {
    const auto exchange = std::make_shared<CountedExchange>(std::move(inner), corsHeaders(request), nActive_);
    if (request.method == "OPTIONS")
        return exchange->send({204,
                               "text/plain",
                               "",
                               {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                                {"Access-Control-Allow-Headers", "authorization, content-type, x-api-key"},
                                {"Access-Control-Max-Age", "600"}}});
    if (const WebFile* file = webFile(request.path)) return sendFile(*file, request, exchange);
    try {
        for (const Route& route : routes()) {
            if (request.path == route.path && request.method == (request.method == "HEAD" ? "HEAD" : route.method))
                return (this->*route.answer)(request, exchange);
        }
        models(request, exchange);  // admit() lets nothing else pass
    } catch (const ApiError& error) {
        exchange->send(errorResponse(dialectOf(request.path), error));
    }
}

void ApiRoutes::sendFile(const WebFile& file, const HttpRequest& request, const Exchange& exchange) {
    HttpResponse response{200, file.contentType};
    for (const auto& [name, value] : webHeaders()) response.headers.emplace_back(name, value);
    response.headers.emplace_back("ETag", file.etag);
    if (isUnchanged(file, request.header("if-none-match")))
        response.status = 304;
    else
        response.body = file.bytes;
    exchange->send(std::move(response));
}

void ApiRoutes::checkReady() const {
    if (draining_) throw ApiError(ErrorKind::Unavailable, "", "the server is shutting down");
    if (model_ == nullptr) throw ApiError(ErrorKind::Unavailable, "", "the model is being loaded");
}

void ApiRoutes::health(HttpRequest&, const Exchange& exchange) {
    checkReady();
    if (engine_->state().isLost) throw ApiError(ErrorKind::Unavailable, "", "the cluster has lost a machine");
    exchange->send({200, "application/json", R"({"status":"ok"})"});
}

void ApiRoutes::models(HttpRequest& request, const Exchange& exchange) {
    checkReady();
    Json data = Json::array();
    for (const std::string& name : model_->names) {
        if (name == "*") continue;
        data.push_back({{"id", name},
                        {"object", "model"},
                        {"created", model_->created},
                        {"owned_by", "dllama"},
                        {"type", "model"},
                        {"display_name", name},
                        {"meta", {{"n_ctx_train", model_->contextLength}, {"n_vocab", model_->vocabSize}}}});
    }
    if (request.path == "/v1/models")
        return exchange->send({200, "application/json",
                               dump({{"object", "list"},
                                     {"data", data},
                                     {"has_more", false},
                                     {"first_id", data.front()["id"]},
                                     {"last_id", data.back()["id"]}})});
    const std::string asked = request.path.substr(std::string_view("/v1/models/").size());
    for (const Json& entry : data)
        if (entry["id"] == asked) return exchange->send({200, "application/json", dump(entry)});
    throw api::modelNotFound(asked);
}

void ApiRoutes::props(HttpRequest&, const Exchange& exchange) {
    checkReady();
    const SamplingParams& s = model_->sampling;
    const Json answer = {
        {"default_generation_settings",
         {{"n_ctx", model_->contextLength},
          {"params", {{"temperature", s.temperature}, {"top_k", s.topK}, {"top_p", s.topP}, {"min_p", s.minP}}}}},
        {"total_slots", options_.nParallel},
        {"model_alias", model_->names[0]},
        {"model_path", model_->names[0]},
        {"chat_format", chatFormatName(model_->format)},
        {"chat_template", ""},
        {"modalities", {{"vision", false}, {"audio", false}}},
        {"backend", model_->backend}};
    exchange->send({200, "application/json", dump(answer)});
}

void ApiRoutes::slots(HttpRequest&, const Exchange& exchange) {
    checkReady();
    const EngineState state = engine_->state();
    Json answer = Json::array();
    for (int i = 0; i < options_.nParallel; i++)
        answer.push_back({{"id", i}, {"n_ctx", model_->contextLength}, {"is_processing", i < state.nRunning}});
    exchange->send({200, "application/json", dump(answer)});
}

void ApiRoutes::embeddings(HttpRequest&, const Exchange&) {
    throw ApiError(ErrorKind::NotSupported, "", "this server computes no embeddings");
}

void ApiRoutes::respondLater(const Exchange& exchange, Dialect dialect, std::function<std::string()> work) {
    boost::asio::post(workers_, [this, exchange, dialect, work = std::move(work)]() mutable {
        HttpResponse response;
        try {
            response.body = work();
        } catch (const ApiError& error) {
            response = errorResponse(dialect, error);
        } catch (const std::exception&) {
            response = errorResponse(dialect, {ErrorKind::Internal, "", "the request could not be handled"});
        }
        post_([exchange = std::move(exchange), response = std::move(response)] { exchange->send(response); });
    });
}

void ApiRoutes::tokenize(HttpRequest& request, const Exchange& exchange) {
    checkReady();
    respondLater(exchange, Dialect::Chat, [model = model_, body = std::move(request.body)] {
        const nlohmann::json document = parseJson(body);
        if (!document.is_object() || !document.contains("content") || !document["content"].is_string())
            throw api::invalidRequest("content", "content must be a text");
        const auto flag = [&](const char* name, bool otherwise) {
            const auto found = document.find(name);
            return found != document.end() && found->is_boolean() ? found->get<bool>() : otherwise;
        };
        const SpecialTokens mode = flag("parse_special", true) ? SpecialTokens::Parse : SpecialTokens::Never;
        const std::vector<int> ids =
            model->tokenizer.encode(document["content"].get<std::string>(), mode, flag("add_special", false));
        Json tokens = Json::array();
        for (const int id : ids) {
            if (flag("with_pieces", false))
                tokens.push_back({{"id", id}, {"piece", model->tokenizer.piece(id)}});
            else
                tokens.push_back(id);
        }
        return dump({{"tokens", tokens}});
    });
}

void ApiRoutes::detokenize(HttpRequest& request, const Exchange& exchange) {
    checkReady();
    respondLater(exchange, Dialect::Chat, [model = model_, body = std::move(request.body)] {
        const nlohmann::json document = parseJson(body);
        if (!document.is_object() || !document.contains("tokens") || !document["tokens"].is_array())
            throw api::invalidRequest("tokens", "tokens must be a list of token ids");
        std::string text;
        for (const nlohmann::json& token : document["tokens"]) {
            if (!token.is_number_integer() || token < 0 || token >= model->tokenizer.vocabSize())
                throw api::invalidRequest("tokens", "{} is no token id, must be from 0 to {}", token.dump(),
                                          model->tokenizer.vocabSize() - 1);
            text += model->tokenizer.piece(token.get<int>());
        }
        return dump({{"content", text}});
    });
}

void ApiRoutes::generate(HttpRequest& request, const Exchange& exchange) {
    checkReady();
    const Dialect dialect = dialectOf(request.path);
    const EngineState state = engine_->state();
    if (state.isLost) throw ApiError(ErrorKind::Unavailable, "", "the cluster has lost a machine");
    if (nPreparing_ + state.nQueued > options_.queueLimit + options_.nParallel)
        throw ApiError(ErrorKind::RateLimit, "", fmt::format("{} requests are waiting: try later", state.nQueued));
    std::optional<AnswerTask::Clock::time_point> deadline;
    if (options_.requestTime.count() > 0) deadline = AnswerTask::Clock::now() + options_.requestTime;
    nPreparing_++;
    boost::asio::post(workers_, [this, dialect, deadline, exchange, body = std::move(request.body)]() mutable {
        std::shared_ptr<AnswerTask> task;
        std::optional<ApiError> failure;
        try {
            const api::ReaderOptions reader{model_->format, model_->vocabSize};
            api::GenerationRequest read =
                dialect == Dialect::Chat ? readChatCompletion(body, reader) : readCompletion(body, reader);
            task = std::make_shared<AnswerTask>(prepareRequest(std::move(read), *model_), *model_, exchange);
        } catch (const ApiError& error) {
            failure = error;
        } catch (const std::exception&) {
            failure = ApiError(ErrorKind::Internal, "", "the request could not be handled");
        }
        post_([this, dialect, deadline, exchange = std::move(exchange), task = std::move(task), failure]() {
            nPreparing_--;
            try {
                if (failure) throw ApiError(*failure);
                const AnswerTask* key = task.get();
                tasks_.emplace(key, task);
                // Not at once: the task is in the middle of its last function.
                task->onOver([this, key] { post_([this, key] { tasks_.erase(key); }); });
                task->begin(*engine_, post_, deadline);
            } catch (const ApiError& error) {
                tasks_.erase(task.get());
                exchange->send(errorResponse(dialect, error));
            }
        });
    });
}

}  // namespace dllama
