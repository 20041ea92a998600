#include "server/choice-stream.hpp"

#include <algorithm>

namespace dllama {

namespace {

OutputDelta contentOf(std::string text) {
    OutputDelta delta;
    delta.text = std::move(text);
    return delta;
}

}  // namespace

ChoiceStream::ChoiceStream(const Tokenizer& tokenizer, ChoiceRules rules)
    : rules_(std::move(rules)),
      decoder_(tokenizer, !rules_.isPlain),
      formatStop_(rules_.formatStops),
      stop_(rules_.stops),
      parser_(rules_.format, rules_.tools, rules_.insideThink),
      skipsSpace_(!rules_.isPlain && answersBeginWithWhiteSpace(rules_.format)),
      inThoughts_(rules_.insideThink) {
    if (!rules_.isPlain) decoder_.keep(outputMarks(rules_.format));
}

std::vector<OutputDelta> ChoiceStream::push(int token) {
    if (inThoughts_) nReasoningTokens_++;
    return take(formatStop_.push(decoder_.push(token)));
}

std::vector<OutputDelta> ChoiceStream::take(const std::string& text) {
    std::vector<OutputDelta> read, shown;
    if (!rules_.isPlain)
        read = parser_.push(text);
    else if (!text.empty())
        read.push_back(contentOf(text));
    filter(read, shown);
    return shown;
}

std::vector<OutputDelta> ChoiceStream::finish(bool cutOff) {
    if (stopText_) return {};
    std::vector<OutputDelta> shown = take(formatStop_.push(decoder_.flush()) + formatStop_.flush());
    if (!rules_.isPlain) {
        std::vector<OutputDelta> read = parser_.finish(cutOff);
        filter(read, shown);
    }
    if (stopText_) return shown;
    if (std::string rest = stop_.flush(); !rest.empty()) shown.push_back(contentOf(std::move(rest)));
    return shown;
}

/// Ends the content at a stop text of the client.
void ChoiceStream::filter(std::vector<OutputDelta>& from, std::vector<OutputDelta>& to) {
    for (OutputDelta& delta : from) {
        if (stopText_) return;
        inThoughts_ = delta.kind == OutputDelta::Kind::Reasoning;
        if (delta.kind == OutputDelta::Kind::Content) {
            if (skipsSpace_) delta.text.erase(0, std::min(delta.text.find_first_not_of(" \n"), delta.text.size()));
            skipsSpace_ = skipsSpace_ && delta.text.empty();
            delta.text = stop_.push(delta.text);
            if (stop_.stopped()) stopText_ = stop_.found();
            if (delta.text.empty()) continue;
        } else if (std::string held = stop_.flush(); !held.empty()) {
            to.push_back(contentOf(std::move(held)));
        }
        to.push_back(std::move(delta));
    }
}

}  // namespace dllama
