#include "api/json-output.hpp"
#include "api/writers.hpp"
#include "text/python-json.hpp"

namespace dllama::api {

namespace {

using Kind = OutputDelta::Kind;

/// The arguments of a call as an object; what is none (a call that was cut off) is an empty one.
Json inputOf(const std::string& arguments) {
    try {
        // Refuses what is nested too deep to be printed.
        if (!parseJson(arguments, "arguments").isObject()) return Json::object();
    } catch (const ConfigError&) {
        return Json::object();
    }
    return Json::parse(arguments);
}

/// Writes the answer as a row of blocks, one open at a time. A whole answer goes the same way and tells no events.
class MessagesWriter final : public AnswerWriter {
  public:
    MessagesWriter(const GenerationRequest& request, AnswerName name)
        : name_(std::move(name)), stream_(request.stream) {}

    std::string begin(const Usage& usage) override {
        emit("message_start", {{"message", messageJson(usage)}});
        return take();
    }

    std::string add(const Delta& delta) override {
        const OutputDelta& part = delta.part;
        if (part.text.empty() && part.name.empty()) return "";
        if (!open_ || kind_ != part.kind || !part.name.empty()) {
            closeBlock();
            openBlock(part, delta.choice);
        }
        text_ += part.text;
        if (part.text.empty()) return take();
        switch (part.kind) {
            case Kind::Reasoning:
                emitDelta({{"type", "thinking_delta"}, {"thinking", part.text}});
                break;
            case Kind::Content:
                emitDelta({{"type", "text_delta"}, {"text", part.text}});
                break;
            case Kind::Call:
                emitDelta({{"type", "input_json_delta"}, {"partial_json", part.text}});
                break;
        }
        return take();
    }

    std::string end(const ChoiceEnd& end) override {
        closeBlock();
        switch (end.reason) {
            case EndReason::Stop:
                stopReason_ = called_ ? "tool_use" : "end_turn";
                break;
            case EndReason::StopText:
                stopReason_ = "stop_sequence";
                stopSequence_ = end.stopText;
                break;
            case EndReason::MaxTokens:
                stopReason_ = "max_tokens";
                break;
            case EndReason::Context:
                stopReason_ = "model_context_window_exceeded";
                break;
        }
        return take();
    }

    std::string finish(const Usage& usage, const Timings&) override {
        if (!stream_) return dump(messageJson(usage));
        emit("message_delta", {{"delta", {{"stop_reason", stopReason_}, {"stop_sequence", stopSequence_}}},
                               {"usage", usageJson(usage)}});
        emit("message_stop", Json::object());
        return take();
    }

    std::string fail(const ApiError& error) override {
        return stream_ ? sseEvent("error", errorJson(Dialect::Messages, error)) : errorBody(Dialect::Messages, error);
    }

  private:
    /// input_tokens leaves out what came from the cache.
    static Json usageJson(const Usage& usage) {
        return {{"input_tokens", usage.promptTokens - usage.cachedTokens},
                {"cache_creation_input_tokens", 0},
                {"cache_read_input_tokens", usage.cachedTokens},
                {"output_tokens", usage.completionTokens}};
    }

    Json messageJson(const Usage& usage) const {
        return {{"id", "msg_" + name_.id},        {"type", "message"},        {"role", "assistant"},
                {"model", name_.model},           {"content", content_},      {"stop_reason", stopReason_},
                {"stop_sequence", stopSequence_}, {"usage", usageJson(usage)}};
    }

    void emit(const std::string& type, const Json& fields) {
        if (!stream_) return;
        Json event = {{"type", type}};
        event.update(fields);
        out_ += sseEvent(type, event);
    }

    void emitDelta(Json delta) {
        emit("content_block_delta", {{"index", content_.size()}, {"delta", std::move(delta)}});
    }

    void openBlock(const OutputDelta& part, int choice) {
        open_ = true;
        kind_ = part.kind;
        text_.clear();
        switch (kind_) {
            case Kind::Reasoning:
                block_ = {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
                break;
            case Kind::Content:
                block_ = {{"type", "text"}, {"text", ""}};
                break;
            case Kind::Call:
                called_ = true;
                block_ = {{"type", "tool_use"},
                          {"id", callId(name_, "toolu_", choice, part.index)},
                          {"name", part.name},
                          {"input", Json::object()}};
                break;
        }
        emit("content_block_start", {{"index", content_.size()}, {"content_block", block_}});
    }

    void closeBlock() {
        if (!open_) return;
        open_ = false;
        // Thoughts are not signed here; clients expect the event.
        if (kind_ == Kind::Reasoning) emitDelta({{"type", "signature_delta"}, {"signature", ""}});
        emit("content_block_stop", {{"index", content_.size()}});
        if (kind_ == Kind::Reasoning) block_["thinking"] = text_;
        if (kind_ == Kind::Content) block_["text"] = text_;
        if (kind_ == Kind::Call) block_["input"] = inputOf(text_);
        content_.push_back(block_);
    }

    std::string take() { return std::exchange(out_, {}); }

    AnswerName name_;
    bool stream_;
    std::string out_;
    Json content_ = Json::array();  // the blocks that are done
    Json stopReason_, stopSequence_;
    bool called_ = false;

    bool open_ = false;
    Kind kind_ = Kind::Content;
    Json block_;
    std::string text_;
};

}  // namespace

std::unique_ptr<AnswerWriter> makeMessagesWriter(const GenerationRequest& request, AnswerName name) {
    return std::make_unique<MessagesWriter>(request, std::move(name));
}

}  // namespace dllama::api
