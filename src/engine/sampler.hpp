#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace dllama {

struct SamplingParams {
    float temperature = 0.8f;        // 0: the most likely token
    float topP = 0.9f;               // smallest set of tokens with this much probability; 0 or 1: off
    int topK = 0;                    // the K most likely tokens; 0: off
    float minP = 0.0f;               // tokens with at least this share of the best one's probability; 0: off
    float repetitionPenalty = 1.0f;  // logits of tokens seen before are divided (negative: multiplied) by it
    uint64_t seed = 0;
};

/// Throws ConfigError, naming the value and its limits.
void checkSamplingParams(const SamplingParams& params);

/// Draws tokens. Same seed and same logits: same tokens, on every machine.
class Sampler {
  public:
    explicit Sampler(const SamplingParams& params);
    const SamplingParams& params() const { return params_; }

    /// `logits` is changed. `history` are the tokens so far. Of equal logits the lower id is the more likely one.
    /// Throws Error if a logit is not a number.
    int sample(std::span<float> logits, std::span<const int> history);

    /// How many of the best logits sampleTop() wants (1 or kMaxTopLogits); 0: these parameters need whole rows.
    static int topNeeded(const SamplingParams& params);
    /// The token that sample() would draw, from what Backend::topLogits found in the parts of the vocabulary, side by
    /// side: (parts * topLogitsCols(nTop)). Nothing, and no random number used up, if that does not decide it.
    std::optional<int> sampleTop(std::span<const float> parts, int nTop);

  private:
    struct Candidate {
        float weight;  // logit, then relative probability
        int token;
        bool operator<(const Candidate& other) const {
            return weight != other.weight ? weight > other.weight : token < other.token;
        }
    };

    /// Logits, the largest first, become (logit - largest) / temperature.
    void divideByTemperature();
    /// Draws from candidates_: logits divided by the temperature, the likeliest first. Unless they are `complete`, more
    /// tokens could be drawn, and `total` is the sum of exp(weight - largest weight) over all of them; nothing is drawn
    /// if it may have to be one of those.
    std::optional<int> draw(bool complete, double total);

    SamplingParams params_;
    std::mt19937_64 random_;
    std::vector<Candidate> candidates_;
};

/// The largest value's index; of equal ones the first. Throws Error if it is not a number.
int argmax(std::span<const float> logits);

}  // namespace dllama
