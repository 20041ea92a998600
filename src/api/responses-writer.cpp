#include "api/json-output.hpp"
#include "api/writers.hpp"

namespace dllama::api {

namespace {

using Kind = OutputDelta::Kind;

/// Writes the answer as a row of items, one open at a time. A whole answer goes the same way and tells no events.
class ResponsesWriter final : public AnswerWriter {
  public:
    ResponsesWriter(const GenerationRequest& request, AnswerName name)
        : name_(std::move(name)),
          stream_(request.stream),
          repeated_(Json::parse(request.repeatedFields.empty() ? "{}" : request.repeatedFields)) {}

    std::string begin(const Usage&) override {
        const Json response = responseJson("in_progress", nullptr);
        emit("response.created", {{"response", response}});
        emit("response.in_progress", {{"response", response}});
        return take();
    }

    std::string add(const Delta& delta) override {
        const OutputDelta& part = delta.part;
        if (!open_ || kind_ != part.kind || (part.kind == Kind::Call && !part.name.empty())) {
            // Log probabilities of tokens without a text do not begin an item.
            if (part.text.empty() && part.name.empty()) return "";
            closeItem("completed");
            openItem(part, delta.choice);
        }
        text_ += part.text;
        const Json logprobs = logprobsJson(delta.logprobs);
        for (const Json& one : logprobs) logprobs_.push_back(one);
        if (part.text.empty()) return take();
        switch (part.kind) {
            case Kind::Reasoning:
                emitOfItem("response.reasoning_text.delta", {{"content_index", 0}, {"delta", part.text}});
                break;
            case Kind::Content:
                emitOfItem("response.output_text.delta",
                           {{"content_index", 0}, {"delta", part.text}, {"logprobs", logprobs}});
                break;
            case Kind::Call:
                emitOfItem("response.function_call_arguments.delta", {{"delta", part.text}});
                break;
        }
        return take();
    }

    std::string end(const ChoiceEnd& end) override {
        cutOff_ = end.reason == EndReason::MaxTokens || end.reason == EndReason::Context;
        // An answer without any text is a message all the same.
        if (!open_ && output_.empty()) openItem({}, end.choice);
        closeItem(cutOff_ ? "incomplete" : "completed");
        return take();
    }

    std::string finish(const Usage& usage, const Timings&) override {
        const Json counts = {{"input_tokens", usage.promptTokens},
                             {"input_tokens_details", {{"cached_tokens", usage.cachedTokens}}},
                             {"output_tokens", usage.completionTokens},
                             {"output_tokens_details", {{"reasoning_tokens", usage.reasoningTokens}}},
                             {"total_tokens", usage.promptTokens + usage.completionTokens}};
        const char* status = cutOff_ ? "incomplete" : "completed";
        const Json response = responseJson(status, counts);
        if (!stream_) return dump(response);
        emit(fmt::format("response.{}", status), {{"response", response}});
        return take();
    }

    std::string fail(const ApiError& error) override {
        if (!stream_) return errorBody(Dialect::Responses, error);
        const Json inner = errorJson(Dialect::Responses, error)["error"];
        const Json code = inner["code"].is_null() ? inner["type"] : inner["code"];
        emit("error", {{"code", code}, {"message", inner["message"]}, {"param", inner["param"]}});
        Json response = responseJson("failed", nullptr);
        response["error"] = {{"code", code}, {"message", inner["message"]}};
        emit("response.failed", {{"response", response}});
        return take();
    }

  private:
    Json responseJson(const char* status, Json usage) const {
        Json response = {
            {"id", "resp_" + name_.id}, {"object", "response"}, {"created_at", name_.created},   {"status", status},
            {"background", false},      {"error", nullptr},     {"incomplete_details", nullptr}, {"model", name_.model},
            {"output", output_}};
        if (cutOff_) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
        response.update(repeated_);
        response["previous_response_id"] = nullptr;
        response["store"] = false;
        response["usage"] = std::move(usage);
        return response;
    }

    void emit(const std::string& type, Json fields) {
        if (!stream_) return;
        Json event = {{"type", type}, {"sequence_number", sequence_++}};
        event.update(fields);
        out_ += sseEvent(type, event);
    }

    void emitOfItem(const std::string& type, Json fields) {
        Json event = {{"item_id", item_["id"]}, {"output_index", output_.size()}};
        event.update(fields);
        emit(type, std::move(event));
    }

    Json textPart() const {
        return {{"type", "output_text"}, {"text", text_}, {"annotations", Json::array()}, {"logprobs", logprobs_}};
    }

    void openItem(const OutputDelta& part, int choice) {
        open_ = true;
        kind_ = part.kind;
        text_.clear();
        logprobs_ = Json::array();
        const std::string id = fmt::format("{}{:02}", name_.id, output_.size());
        switch (kind_) {
            case Kind::Reasoning:
                item_ = {{"id", "rs_" + id},
                         {"type", "reasoning"},
                         {"status", "in_progress"},
                         {"summary", Json::array()},
                         {"content", Json::array()}};
                break;
            case Kind::Content:
                item_ = {{"id", "msg_" + id},
                         {"type", "message"},
                         {"status", "in_progress"},
                         {"role", "assistant"},
                         {"content", Json::array()}};
                break;
            case Kind::Call:
                item_ = {{"id", "fc_" + id},        {"type", "function_call"},
                         {"status", "in_progress"}, {"call_id", callId(name_, "call_", choice, part.index)},
                         {"name", part.name},       {"arguments", ""}};
                break;
        }
        emit("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
        if (kind_ == Kind::Content)
            emitOfItem("response.content_part.added", {{"content_index", 0}, {"part", textPart()}});
    }

    void closeItem(const char* status) {
        if (!open_) return;
        open_ = false;
        item_["status"] = status;
        switch (kind_) {
            case Kind::Reasoning:
                emitOfItem("response.reasoning_text.done", {{"content_index", 0}, {"text", text_}});
                item_["content"] = Json::array({Json{{"type", "reasoning_text"}, {"text", text_}}});
                break;
            case Kind::Content:
                emitOfItem("response.output_text.done",
                           {{"content_index", 0}, {"text", text_}, {"logprobs", logprobs_}});
                emitOfItem("response.content_part.done", {{"content_index", 0}, {"part", textPart()}});
                item_["content"] = Json::array({textPart()});
                break;
            case Kind::Call:
                emitOfItem("response.function_call_arguments.done", {{"name", item_["name"]}, {"arguments", text_}});
                item_["arguments"] = text_;
                break;
        }
        emit("response.output_item.done", {{"output_index", output_.size()}, {"item", item_}});
        output_.push_back(item_);
    }

    std::string take() { return std::exchange(out_, {}); }

    AnswerName name_;
    bool stream_;
    Json repeated_;
    std::string out_;
    int sequence_ = 0;
    Json output_ = Json::array();  // the items that are done
    bool cutOff_ = false;

    bool open_ = false;
    Kind kind_ = Kind::Content;
    Json item_;
    std::string text_;
    Json logprobs_ = Json::array();
};

}  // namespace

std::unique_ptr<AnswerWriter> makeResponsesWriter(const GenerationRequest& request, AnswerName name) {
    return std::make_unique<ResponsesWriter>(request, std::move(name));
}

}  // namespace dllama::api
