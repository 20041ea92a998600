#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dllama {

struct SamplingParams {
    float temperature = 0.8f;        // 0: the most likely token
    float topP = 0.9f;               // smallest set of tokens with this much probability; 0 or 1: off
    int topK = 0;                    // the K most likely tokens; 0: off
    float minP = 0.0f;               // tokens with at least this share of the best one's probability; 0: off
    float repetitionPenalty = 1.0f;  // logits of tokens seen before are divided (negative: multiplied) by it
    uint64_t seed = 0;
    float presencePenalty = 0.0f;                       // taken from the logits of tokens that the answer holds
    float frequencyPenalty = 0.0f;                      // likewise, once for each time
    std::vector<std::pair<int, float>> logitBias = {};  // added to the logits of these tokens
};

/// Throws ConfigError, naming the value and its limits.
void checkSamplingParams(const SamplingParams& params);

/// Which tokens may be drawn: token t is bit t % 32 of word t / 32, as in TokenConstraint. Empty: all.
using TokenMask = std::span<const uint32_t>;

/// A token's natural log probability by the bare logits, and the most likely tokens with theirs.
struct LogProbabilities {
    float ofToken = 0.0f;
    std::vector<std::pair<int, float>> top = {};
};
LogProbabilities logProbabilities(std::span<const float> logits, int token, int nTop);

/// Draws tokens. Same seed and same logits: same tokens, on every machine.
class Sampler {
  public:
    /// The first nPrompt tokens of the history count only for the repetition penalty.
    explicit Sampler(const SamplingParams& params, int nPrompt = 0);
    const SamplingParams& params() const { return params_; }

    /// `logits` is changed. `history` are the tokens so far: those of the last call, and more. Of equal logits the
    /// lower id is the more likely one. Throws Error if a logit is not a number.
    int sample(std::span<float> logits, std::span<const int> history, TokenMask allowed = {});

    /// How many of the best logits sampleTop() wants (1 or kMaxTopLogits); 0: these parameters need whole rows.
    static int topNeeded(const SamplingParams& params, bool isMasked = false);
    /// The token that sample() would draw, from what Backend::topLogits found in the parts of the vocabulary, side by
    /// side: (parts * topLogitsCols(nTop)). Nothing, and no random number used up, if that does not decide it.
    std::optional<int> sampleTop(std::span<const float> parts, int nTop, TokenMask allowed = {});

    /// What the next number drawn depends on: a step that is computed again draws the same ones.
    using Random = std::mt19937_64;
    const Random& random() const { return random_; }
    void restore(const Random& random) { random_ = random; }

  private:
    struct Candidate {
        float weight;  // logit, then relative probability
        int token;
        bool operator<(const Candidate& other) const {
            return weight != other.weight ? weight > other.weight : token < other.token;
        }
    };

    void penalise(std::span<float> logits, std::span<const int> history);
    /// Logits, the largest first, become (logit - largest) / temperature.
    void divideByTemperature();
    /// Draws from candidates_: logits divided by the temperature, the likeliest first. Unless they are `complete`, more
    /// tokens could be drawn, and `total` is the sum of exp(weight - largest weight) over all of them; nothing is drawn
    /// if it may have to be one of those.
    std::optional<int> draw(bool complete, double total);

    SamplingParams params_;
    Random random_;
    std::vector<Candidate> candidates_;
    int nPrompt_;
    size_t nCounted_ = 0;                  // tokens of the history that counts_ knows
    std::unordered_map<int, int> counts_;  // of each token seen: how often the answer holds it
};

/// The largest value's index; of equal ones the first. Throws Error if it is not a number.
int argmax(std::span<const float> logits);

}  // namespace dllama
