#include "engine/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "backend/backend.hpp"
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
        candidates_[i] = {logits[i], static_cast<int>(i)};
    }
    const bool limited = params_.topK > 0 && static_cast<size_t>(params_.topK) < n;
    const size_t kept = limited ? static_cast<size_t>(params_.topK) : n;
    std::partial_sort(candidates_.begin(), candidates_.begin() + kept, candidates_.end());
    candidates_.resize(kept);
    divideByTemperature();
    return draw(true, 0.0).value();
}

int Sampler::topNeeded(const SamplingParams& params) {
    if (params.repetitionPenalty != 1.0f || params.topK > kMaxTopLogits) return 0;
    return params.temperature == 0.0f ? 1 : kMaxTopLogits;
}

std::optional<int> Sampler::sampleTop(std::span<const float> parts, int nTop) {
    candidates_.clear();
    // What a part has not told is less likely than the last that it told.
    std::optional<Candidate> untold;
    const auto cols = static_cast<size_t>(topLogitsCols(nTop));
    for (size_t at = 0; at < parts.size(); at += cols) {
        if (std::isnan(parts[at])) throw Error("{}", kNotNumbers);
        for (int i = 0; i < nTop; i++) {
            const Candidate candidate{parts[at + 2 + i], static_cast<int>(parts[at + 2 + nTop + i])};
            if (candidate.token < 0) break;
            candidates_.push_back(candidate);
            if (i + 1 == nTop && (!untold || candidate < *untold)) untold = candidate;
        }
    }
    std::sort(candidates_.begin(), candidates_.end());
    if (untold) std::erase_if(candidates_, [&](const Candidate& candidate) { return *untold < candidate; });
    if (candidates_.empty()) return std::nullopt;
    if (params_.temperature == 0.0f) return candidates_[0].token;

    const float temperature = params_.temperature;
    double total = 0.0;
    for (size_t at = 0; at < parts.size(); at += cols)
        total += parts[at + 1] * std::exp((double{parts[at]} - candidates_[0].weight) / temperature);
    divideByTemperature();
    const auto limit = static_cast<size_t>(params_.topK);
    if (limit > 0 && limit <= candidates_.size()) {
        candidates_.resize(limit);
        return draw(true, 0.0);
    }
    return limit > 0 && untold ? std::nullopt : draw(!untold, total);
}

void Sampler::divideByTemperature() {
    // The largest becomes 0 before the division: a temperature near 0 would make it infinite.
    const float largest = candidates_[0].weight;
    for (Candidate& candidate : candidates_) candidate.weight = (candidate.weight - largest) / params_.temperature;
}

std::optional<int> Sampler::draw(bool complete, double total) {
    // Softmax, then the filters on its cumulated probability.
    const float largest = candidates_[0].weight;
    double sum = 0.0;
    for (Candidate& candidate : candidates_) sum += candidate.weight = std::exp(candidate.weight - largest);
    size_t kept = candidates_.size();
    if (params_.minP > 0.0f) {
        if (!complete && candidates_.back().weight >= params_.minP) return std::nullopt;
        while (candidates_[kept - 1].weight < params_.minP) sum -= candidates_[--kept].weight;
        complete = true;
    }
    if (!complete) sum = total;
    if (params_.topP > 0.0f && params_.topP < 1.0f) {
        double passed = 0.0;
        size_t nucleus = 0;
        while (nucleus < kept && passed < params_.topP * sum) passed += candidates_[nucleus++].weight;
        if (!complete && passed < params_.topP * sum) return std::nullopt;
        kept = nucleus;
        sum = passed;
        complete = true;
    }

    // 53 random bits as a number in [0, 1): std::uniform_real_distribution differs between libraries.
    const std::mt19937_64 before = random_;
    double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
    for (size_t i = 0; i < kept; i++) {
        left -= candidates_[i].weight;
        if (left < 0.0 || (complete && i + 1 == kept)) return candidates_[i].token;
    }
    random_ = before;
    return std::nullopt;
}

}  // namespace dllama
