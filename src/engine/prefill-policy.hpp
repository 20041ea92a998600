#pragma once

namespace dllama {

/// How many tokens of prompts a step may compute while answers are running: few enough that those do not stall, many
/// enough that prompts get on. Learns from how long steps take.
class PrefillPolicy {
  public:
    /// Not more than so much longer than a step that only decodes, or than kShortStall seconds.
    static constexpr double kStall = 2.0;
    static constexpr double kShortStall = 0.05;
    /// A step that reads all weights for fewer tokens is a waste.
    static constexpr int kLeastTokens = 32;

    int tokensBesideDecode() const;
    void stepTook(int nPrefillTokens, int nDecodeTokens, double seconds);

  private:
    double decodeSeconds_ = 0.0;    // of a step without prompts, smoothed; 0: not known
    double secondsPerToken_ = 0.0;  // of a prompt, smoothed; 0: not known
};

}  // namespace dllama
