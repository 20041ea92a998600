#include "engine/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "base/errors.hpp"

namespace dllama {

namespace {

constexpr const char* kNotNumbers = "the model's logits are not numbers: the weights are damaged or overflowed";

}  // namespace

void checkSamplingParams(const SamplingParams& p) {
    const auto within = [](const char* name, double value, double low, double high) {
        if (!(value >= low && value <= high))
            throw ConfigError("{} is {}, must be from {} to {}", name, value, low, high);
    };
    within("temperature", p.temperature, 0.0, 100.0);
    within("top-p", p.topP, 0.0, 1.0);
    within("top-k", p.topK, 0, 1 << 30);
    within("min-p", p.minP, 0.0, 1.0);
    within("repetition penalty", p.repetitionPenalty, 0.01, 100.0);
}

int argmax(std::span<const float> logits) {
    // Lane by lane, as vector instructions do it; then the place of what was found.
    constexpr size_t kLanes = 16;
    float largest[kLanes];
    std::fill_n(largest, kLanes, -std::numeric_limits<float>::infinity());
    const size_t whole = logits.size() / kLanes * kLanes;
    for (size_t i = 0; i < whole; i += kLanes)
        for (size_t lane = 0; lane < kLanes; lane++)
            largest[lane] = logits[i + lane] > largest[lane] ? logits[i + lane] : largest[lane];
    for (size_t i = whole; i < logits.size(); i++) largest[0] = std::max(largest[0], logits[i]);
    const float most = *std::max_element(largest, largest + kLanes);
    const auto best = std::find(logits.begin(), logits.end(), most);
    // Nothing is larger than what is no number: an overflowed model has only such logits.
    if (best == logits.end() || std::isnan(logits[0])) throw Error("{}", kNotNumbers);
    return static_cast<int>(best - logits.begin());
}

Sampler::Sampler(const SamplingParams& params) : params_(params), random_(params.seed) {
    checkSamplingParams(params);
}

int Sampler::sample(std::span<float> logits, std::span<const int> history) {
    if (params_.repetitionPenalty != 1.0f) {
        for (int token : std::unordered_set<int>(history.begin(), history.end()))
            logits[token] *= logits[token] > 0.0f ? 1.0f / params_.repetitionPenalty : params_.repetitionPenalty;
    }
    if (params_.temperature == 0.0f) return argmax(logits);

    // Candidates from the most likely down, as many as the filters can need.
    const size_t n = logits.size();
    candidates_.resize(n);
    for (size_t i = 0; i < n; i++) {
        if (std::isnan(logits[i])) throw Error("{}", kNotNumbers);
        candidates_[i] = {logits[i] / params_.temperature, static_cast<int>(i)};
    }
    const auto likelier = [](const Candidate& a, const Candidate& b) {
        return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
    };
    const bool limited = params_.topK > 0 && static_cast<size_t>(params_.topK) < n;
    size_t kept = limited ? static_cast<size_t>(params_.topK) : n;
    std::partial_sort(candidates_.begin(), candidates_.begin() + kept, candidates_.end(), likelier);

    // Softmax over what is left, then the filters on its cumulated probability.
    const float largest = candidates_[0].weight;
    double sum = 0.0;
    for (size_t i = 0; i < kept; i++) sum += candidates_[i].weight = std::exp(candidates_[i].weight - largest);
    if (params_.minP > 0.0f) {
        while (candidates_[kept - 1].weight < params_.minP) sum -= candidates_[--kept].weight;
    }
    if (params_.topP > 0.0f && params_.topP < 1.0f) {
        double passed = 0.0;
        size_t nucleus = 0;
        while (nucleus < kept && passed < params_.topP * sum) passed += candidates_[nucleus++].weight;
        kept = nucleus;
        sum = passed;
    }

    // 53 random bits as a number in [0, 1): std::uniform_real_distribution differs between libraries.
    double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
    for (size_t i = 0; i + 1 < kept; i++) {
        left -= candidates_[i].weight;
        if (left < 0.0) return candidates_[i].token;
    }
    return candidates_[kept - 1].token;
}

}  // namespace dllama
