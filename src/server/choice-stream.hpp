#pragma once

#include <optional>
#include <string>
#include <vector>

#include "api/generation.hpp"
#include "text/chat-output.hpp"
#include "text/stop-detector.hpp"
#include "text/tokenizer.hpp"

namespace dllama {

/// How the tokens of one answer become its parts.
struct ChoiceRules {
    ChatFormat format = ChatFormat::None;
    /// A text that goes on (/v1/completions): no thoughts, no calls, every byte is content.
    bool isPlain = false;
    bool insideThink = false;
    std::vector<std::string> tools = {};        ///< of which calls are read; see ChatOutputParser
    std::vector<std::string> formatStops = {};  ///< ChatStops::texts
    std::vector<std::string> stops = {};        ///< the client's: they end the content, not thoughts or calls
};

/// Tokens -> parts of an answer, as they come.
class ChoiceStream {
  public:
    /// The tokenizer must outlive the stream.
    ChoiceStream(const Tokenizer& tokenizer, ChoiceRules rules);

    /// The parts that are certain with this token; not a stop token.
    std::vector<OutputDelta> push(int token);
    /// The answer is over without a stop text; cutOff: by a limit.
    std::vector<OutputDelta> finish(bool cutOff);
    /// The text says that the answer is over: no more tokens are wanted. finish() still gives what was held back.
    bool ended() const { return stopText_ || formatStop_.stopped() || (!rules_.isPlain && parser_.ended()); }
    /// The client's stop text that has come.
    const std::optional<std::string>& stopText() const { return stopText_; }
    /// Tokens of thoughts so far.
    int nReasoningTokens() const { return nReasoningTokens_; }

  private:
    std::vector<OutputDelta> take(const std::string& text);
    void filter(std::vector<OutputDelta>& from, std::vector<OutputDelta>& to);

    const ChoiceRules rules_;
    StreamDecoder decoder_;
    StopDetector formatStop_, stop_;
    ChatOutputParser parser_;
    bool skipsSpace_;
    bool inThoughts_;
    int nReasoningTokens_ = 0;
    std::optional<std::string> stopText_;
};

}  // namespace dllama
