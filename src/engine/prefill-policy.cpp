#include "engine/prefill-policy.hpp"

#include <algorithm>

namespace dllama {

namespace {

/// Of the latest step in what is known of such steps.
constexpr double kWeight = 0.25;
constexpr int kTokensAtFirst = 128;
constexpr double kMostTokens = 1 << 20;

void smooth(double& value, double next) {
    value = value == 0.0 ? next : value + kWeight * (next - value);
}

}  // namespace

int PrefillPolicy::tokensBesideDecode() const {
    if (secondsPerToken_ == 0.0) return kTokensAtFirst;
    const double seconds = std::max(kShortStall, kStall * decodeSeconds_);
    return static_cast<int>(std::clamp(seconds / secondsPerToken_, double{kLeastTokens}, kMostTokens));
}

void PrefillPolicy::stepTook(int nPrefillTokens, int nDecodeTokens, double seconds) {
    if (nPrefillTokens == 0 && nDecodeTokens > 0) smooth(decodeSeconds_, seconds);
    // A short piece of a prompt costs what reading the weights costs and says little about long ones.
    if (nPrefillTokens >= kLeastTokens) {
        const double forPrompt = nDecodeTokens > 0 ? std::max(seconds - decodeSeconds_, 0.1 * seconds) : seconds;
        smooth(secondsPerToken_, forPrompt / nPrefillTokens);
    }
}

}  // namespace dllama
