#include "text/chat-output.hpp"

#include <algorithm>
#include <utility>

#include "text/chat-calls.hpp"
#include "text/chat-families.hpp"
#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

using chat::CallRead;
using chat::CallStyle;
using std::string_view;

constexpr string_view kSpaces = " \t\r\n";

/// How many bytes at the end of `text` are the beginning of one of the marks.
size_t openEnd(string_view text, const std::vector<string_view>& marks) {
    size_t longest = 0;
    for (string_view mark : marks) {
        for (size_t n = std::min(text.size(), mark.size() - 1); n > longest; n--) {
            if (text.ends_with(mark.substr(0, n))) longest = n;
        }
    }
    return longest;
}

size_t findFirst(string_view text, const std::vector<string_view>& marks) {
    size_t first = string_view::npos;
    for (string_view mark : marks) first = std::min(first, text.find(mark));
    return first;
}

}  // namespace

/// Text goes through phases; what is not yet certain waits in held_.
class ChatOutputParser::State {
  public:
    State(ChatFormat format, const std::vector<std::string>& tools, bool insideThink)
        : family_(chat::familyOf(format)),
          tools_(chat::parseTools({.messages = {}, .tools = tools})),
          style_(tools_.empty() && family_.calls != CallStyle::GlmLines && family_.calls != CallStyle::Solar
                     ? CallStyle::None
                     : family_.calls),
          marks_(chat::callMarks(style_)) {
        if (insideThink) {
            phase_ = Phase::Think;
            mayOpenAgain_ = true;
        } else if (family_.thinkOpen.empty()) {
            enterContent();
        }
    }

    std::vector<OutputDelta> take(string_view text, bool atEnd, bool cutOff) {
        deltas_.clear();
        held_ += text;
        for (bool goOn = true; goOn;) {
            switch (phase_) {
                case Phase::Start:
                    goOn = start(atEnd);
                    break;
                case Phase::Think:
                    goOn = think(atEnd, cutOff);
                    break;
                case Phase::Content:
                    goOn = content(atEnd);
                    break;
                case Phase::LlamaStart:
                case Phase::LlamaCalls:
                    goOn = llama(atEnd);
                    break;
                case Phase::Lines:
                    goOn = lines(atEnd);
                    break;
                case Phase::Over:
                    goOn = false;
                    break;
            }
        }
        return std::exchange(deltas_, {});
    }

    bool ended() const { return phase_ == Phase::Over; }

  private:
    enum class Phase { Start, Think, Content, LlamaStart, LlamaCalls, Lines, Over };

    void enterContent() {
        phase_ = style_ == CallStyle::LlamaJson  ? Phase::LlamaStart
                 : style_ == CallStyle::GlmLines ? Phase::Lines
                                                 : Phase::Content;
    }

    void emit(OutputDelta::Kind kind, string_view text) {
        if (text.empty()) return;
        if (!deltas_.empty() && deltas_.back().kind == kind) {
            deltas_.back().text += text;
        } else {
            deltas_.push_back({kind, std::string(text), "", 0});
        }
    }

    void emitContent(string_view text) {
        const bool asIs = style_ == CallStyle::LlamaJson || family_.format == ChatFormat::None;
        if (!hasContent_ && !asIs) text = chat::stripLineFeedsLeft(text);
        if (text.empty()) return;
        hasContent_ = true;
        sinceCall_ = true;
        emit(OutputDelta::Kind::Content, text);
    }

    void emitCalls(const std::vector<chat::ParsedCall>& calls) {
        for (const chat::ParsedCall& call : calls)
            deltas_.push_back({OutputDelta::Kind::Call, call.arguments, call.name, nCalls_++});
        sinceCall_ = false;
    }

    /// Does the answer begin with thoughts?
    bool start(bool atEnd) {
        const string_view text = held_;
        const size_t begin = text.find_first_not_of(kSpaces);
        const string_view rest = begin == string_view::npos ? string_view() : text.substr(begin);
        if (rest.starts_with(family_.thinkOpen)) {
            held_.erase(0, begin + family_.thinkOpen.size());
            phase_ = Phase::Think;
            return true;
        }
        if (!atEnd && family_.thinkOpen.starts_with(rest)) return false;
        enterContent();
        return true;
    }

    bool think(bool atEnd, bool cutOff) {
        if (mayOpenAgain_) {
            // The prompt has opened the thought; some models write the mark once more.
            const size_t begin = held_.find_first_not_of(kSpaces);
            const string_view rest = begin == std::string::npos ? string_view() : string_view(held_).substr(begin);
            if (!atEnd && family_.thinkOpen.starts_with(rest) && rest != family_.thinkOpen) return false;
            if (rest.starts_with(family_.thinkOpen)) held_.erase(0, begin + family_.thinkOpen.size());
            mayOpenAgain_ = false;
        }
        if (!hasThought_) held_.erase(0, std::min(held_.find_first_not_of('\n'), held_.size()));
        const string_view text = held_;
        const size_t close = text.find(family_.thinkClose);
        const std::vector<string_view> none;
        const size_t mark = findFirst(text, isThoughtMarked() ? marks_ : none);
        if (close != string_view::npos) {
            emitThought(text.substr(0, text.substr(0, close).find_last_not_of('\n') + 1));
            held_.erase(0, close + family_.thinkClose.size());
            enterContent();
            return true;
        }
        if (atEnd) {
            const size_t thought =
                mark != string_view::npos && !cutOff && onlyCalls(text.substr(mark)) ? mark : string_view::npos;
            const string_view all = text.substr(0, thought);
            emitThought(all.substr(0, all.find_last_not_of('\n') + 1));
            held_.erase(0, std::min(thought, held_.size()));
            enterContent();
            return true;
        }
        // What could be a call that ends the thought waits, but not for a text that plainly is none.
        std::vector<string_view> watched = {family_.thinkClose};
        if (isThoughtMarked()) watched.insert(watched.end(), marks_.begin(), marks_.end());
        size_t keep = std::min(mark, text.size() - openEnd(text, watched));
        if (mark != string_view::npos && held_.size() > nextLook_) {
            nextLook_ = 2 * held_.size();
            if (isDeniedCall(text.substr(mark))) {
                callsDenied_ = true;
                return true;
            }
        }
        keep = text.substr(0, keep).find_last_not_of('\n') + 1;
        emitThought(text.substr(0, keep));
        held_.erase(0, keep);
        return false;
    }

    bool isThoughtMarked() const { return !callsDenied_ && style_ != CallStyle::Solar; }

    void emitThought(string_view text) {
        if (!text.empty()) hasThought_ = true;
        emit(OutputDelta::Kind::Reasoning, text);
    }

    bool onlyCalls(string_view text) const {
        for (;;) {
            text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
            if (text.empty()) return true;
            if (findFirst(text, marks_) != 0) return false;
            const CallRead read = chat::readCall(style_, text, true, tools_);
            if (read.kind != CallRead::Kind::Calls && read.kind != CallRead::Kind::Skip) return false;
            text.remove_prefix(read.length);
        }
    }

    /// The text from the first mark of a thought on holds something that is no call.
    bool isDeniedCall(string_view text) const {
        for (;;) {
            const CallRead read = chat::readCall(style_, text, false, tools_);
            if (read.kind == CallRead::Kind::More) return false;
            if (read.kind == CallRead::Kind::Text) return true;
            text.remove_prefix(read.length);
            text.remove_prefix(std::min(text.find_first_not_of(kSpaces), text.size()));
            if (text.empty()) return false;
            if (findFirst(text, marks_) != 0) return openEnd(text, marks_) != text.size();
        }
    }

    bool content(bool atEnd) {
        const string_view text = held_;
        const size_t mark = findFirst(text, marks_);
        if (mark == string_view::npos) {
            size_t keep = text.size() - (atEnd ? 0 : openEnd(text, marks_));
            const size_t beforeSpaces = text.substr(0, keep).find_last_not_of(kSpaces) + 1;
            if (atEnd) {
                // Behind the last call white space is none of the content.
                emitContent(nCalls_ > 0 && !sinceCall_ && beforeSpaces == 0 ? "" : text);
                held_.clear();
                return false;
            }
            if (!marks_.empty()) keep = beforeSpaces;
            emitContent(text.substr(0, keep));
            held_.erase(0, keep);
            return false;
        }
        const size_t words = text.substr(0, mark).find_last_not_of(kSpaces) + 1;
        emitContent(text.substr(0, words));
        const CallRead read = chat::readCall(style_, text.substr(mark), atEnd, tools_);
        switch (read.kind) {
            case CallRead::Kind::More:
                held_.erase(0, words);
                return false;
            case CallRead::Kind::Calls:
                emitCalls(read.calls);
                held_.erase(0, mark + read.length);
                return true;
            case CallRead::Kind::Text:
                emitContent(text.substr(words, mark - words + read.length));
                held_.erase(0, mark + read.length);
                return true;
            case CallRead::Kind::Skip:
                if (style_ == CallStyle::Solar && skipsSolar(text.substr(mark, read.length))) return false;
                held_.erase(mark, read.length);
                held_.erase(0, words);
                return true;
        }
        return false;
    }

    /// <|end|> behind content is the end of the answer; behind a thought, and in front of content, it is not.
    bool skipsSolar(string_view mark) {
        if (mark == "<|content|>") inSolarContent_ = true;
        if (mark != "<|end|>" || !inSolarContent_) return false;
        held_.clear();
        phase_ = Phase::Over;
        return true;
    }

    /// One JSON object after the other, divided by white space and semicolons, from the beginning of the answer on.
    bool llama(bool atEnd) {
        constexpr string_view kTag = "<|python_tag|>";
        const bool first = phase_ == Phase::LlamaStart;
        const string_view text = held_;
        const size_t begin = std::min(text.find_first_not_of(first ? " \t\r\n" : " \t\r\n;"), text.size());
        const string_view rest = text.substr(begin);
        if (rest.empty() && !first && atEnd) {
            held_.clear();
            return false;
        }
        if (!atEnd && kTag.starts_with(rest) && rest != kTag) return false;
        if (rest.starts_with(kTag)) {
            held_.erase(0, begin + kTag.size());
            tagged_ = true;
            phase_ = Phase::LlamaCalls;
            return true;
        }
        const auto asContent = [&] {
            // A text that is no call at all stays to the byte.
            emitContent(first ? text : rest);
            held_.clear();
            marks_.clear();
            phase_ = Phase::Content;
            return true;
        };
        if (!rest.starts_with('{')) return asContent();
        const chat::JsonScan scan = chat::scanJson(rest);
        if (scan.kind == chat::JsonScan::Kind::More && !atEnd) return false;
        PythonValue object;
        chat::ParsedCall call;
        if (scan.kind != chat::JsonScan::Kind::Whole || !chat::parseObject(rest.substr(0, scan.length), object) ||
            !isLlamaCall(object, call))
            return asContent();
        emitCalls({call});
        held_.erase(0, begin + scan.length);
        phase_ = Phase::LlamaCalls;
        return true;
    }

    bool isLlamaCall(const PythonValue& object, chat::ParsedCall& call) const {
        constexpr string_view kKeys[] = {"name", "parameters", "arguments", "type", "id"};
        for (const auto& [key, value] : object.members) {
            if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) return false;
        }
        return chat::callOfObject(object, call) && (tagged_ || isTool(call.name));
    }

    bool isTool(string_view name) const {
        return std::any_of(tools_.begin(), tools_.end(), [&](const PythonValue& tool) {
            const PythonValue* written = chat::functionOf(tool).find("name");
            return written && written->isString() && written->text == name;
        });
    }

    /// Parts divided by <|assistant|>, each stripped: a call (name, line feed, JSON object) or content.
    bool lines(bool atEnd) {
        const std::vector<string_view> divider = {"<|assistant|>"};
        const string_view text = held_;
        const size_t end = text.find(divider[0]);
        const bool whole = atEnd || end != string_view::npos;
        const string_view part =
            text.substr(0, end != string_view::npos ? end : text.size() - (atEnd ? 0 : openEnd(text, divider)));
        const string_view trimmed = stripUnicode(part);
        if (whole) {
            chat::ParsedCall call;
            if (!partIsContent_ && isLineCall(trimmed, call)) {
                emitCalls({call});
            } else {
                emitPart(partIsContent_ ? stripUnicodeRight(part) : trimmed);
            }
            partIsContent_ = false;
            partBegun_ = false;
            held_.erase(0, end == string_view::npos ? held_.size() : end + divider[0].size());
            return end != string_view::npos;
        }
        if (!partIsContent_ && couldBeLineCall(stripUnicodeLeft(part))) return false;
        const string_view known = partIsContent_ ? stripUnicodeRight(part) : trimmed;
        if (known.empty()) return false;
        partIsContent_ = true;
        const size_t taken = static_cast<size_t>(known.data() - text.data()) + known.size();
        emitPart(known);
        held_.erase(0, taken);
        return false;
    }

    void emitPart(string_view text) {
        if (text.empty()) return;
        if (!partBegun_ && hasContent_) emit(OutputDelta::Kind::Content, "\n");
        partBegun_ = true;
        emitContent(text);
    }

    static string_view stripUnicodeRight(string_view text) {
        const string_view stripped = stripUnicode(text);
        if (stripped.empty()) return {};
        return text.substr(0, static_cast<size_t>(stripped.data() - text.data()) + stripped.size());
    }

    bool couldBeLineCall(string_view part) const {
        const size_t end = part.find('\n');
        if (end == string_view::npos) {
            return std::any_of(tools_.begin(), tools_.end(), [&](const PythonValue& tool) {
                const PythonValue* name = chat::functionOf(tool).find("name");
                if (!name || !name->isString()) return false;
                return string_view(name->text).starts_with(part) ||
                       (part.starts_with(name->text) && stripUnicode(part.substr(name->text.size())).empty());
            });
        }
        if (!isTool(stripUnicode(part.substr(0, end)))) return false;
        const string_view json = part.substr(end + 1);
        if (json.empty()) return true;
        if (json[0] != '{') return false;
        const chat::JsonScan scan = chat::scanJson(json);
        return scan.kind == chat::JsonScan::Kind::More ||
               (scan.kind == chat::JsonScan::Kind::Whole && stripUnicode(json.substr(scan.length)).empty());
    }

    bool isLineCall(string_view part, chat::ParsedCall& call) const {
        const size_t end = part.find('\n');
        if (end == string_view::npos || part.substr(end + 1, 1) != "{") return false;
        const string_view name = stripUnicode(part.substr(0, end));
        PythonValue object;
        if (!isTool(name) || !chat::parseObject(part.substr(end + 1), object)) return false;
        call = {std::string(name), toPythonJson(object)};
        return true;
    }

    const chat::Family& family_;
    std::vector<PythonValue> tools_;
    CallStyle style_;
    std::vector<string_view> marks_;
    Phase phase_ = Phase::Start;
    std::string held_;
    std::vector<OutputDelta> deltas_;
    int nCalls_ = 0;
    bool mayOpenAgain_ = false;
    bool hasThought_ = false;
    bool callsDenied_ = false;  // the first mark of this thought begins no call
    size_t nextLook_ = 0;
    bool hasContent_ = false;
    bool sinceCall_ = false;  // content has come behind the last call
    bool tagged_ = false;
    bool partIsContent_ = false, partBegun_ = false;
    bool inSolarContent_ = false;
};

ChatOutputParser::ChatOutputParser(ChatFormat format, const std::vector<std::string>& tools, bool insideThink)
    : state_(std::make_unique<State>(format, tools, insideThink)) {}
ChatOutputParser::~ChatOutputParser() = default;
ChatOutputParser::ChatOutputParser(ChatOutputParser&&) noexcept = default;

std::vector<OutputDelta> ChatOutputParser::push(string_view text) {
    return state_->take(text, false, false);
}

std::vector<OutputDelta> ChatOutputParser::finish(bool cutOff) {
    return state_->take("", true, cutOff);
}

bool ChatOutputParser::ended() const {
    return state_->ended();
}

std::vector<string_view> outputMarks(ChatFormat format) {
    const chat::Family& family = chat::familyOf(format);
    std::vector<string_view> marks = chat::callMarks(family.calls);
    if (!family.thinkOpen.empty()) marks.insert(marks.end(), {family.thinkOpen, family.thinkClose});
    if (family.calls == CallStyle::LlamaJson) marks.push_back("<|python_tag|>");
    if (family.calls == CallStyle::GlmLines) marks.push_back("<|assistant|>");
    if (family.calls == CallStyle::GlmTags)
        marks.insert(marks.end(), {"</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"});
    if (family.calls == CallStyle::QwenTags || family.calls == CallStyle::Hermes) marks.push_back("</tool_call>");
    if (family.calls == CallStyle::Deepseek) marks.insert(marks.end(), {"<｜tool▁sep｜>", "<｜tool▁call▁end｜>"});
    if (family.calls == CallStyle::Solar)
        marks.insert(marks.end(), {"<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"});
    return marks;
}

void AnswerCollector::add(const std::vector<OutputDelta>& deltas) {
    for (const OutputDelta& delta : deltas) {
        switch (delta.kind) {
            case OutputDelta::Kind::Reasoning:
                reasoning_ += delta.text;
                break;
            case OutputDelta::Kind::Content:
                content_ += delta.text;
                break;
            case OutputDelta::Kind::Call:
                calls_.push_back({.name = delta.name, .arguments = delta.text});
                break;
        }
    }
}

ParsedAnswer AnswerCollector::answer(bool cutOff) const {
    ParsedAnswer answer;
    if (!reasoning_.empty()) answer.reasoning = reasoning_;
    if (!content_.empty() || (reasoning_.empty() && calls_.empty())) answer.content = content_;
    answer.calls = calls_;
    answer.finishReason = cutOff ? "length" : calls_.empty() ? "stop" : "tool_calls";
    return answer;
}

}  // namespace dllama
