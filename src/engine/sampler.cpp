#include "engine/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backend/backend.hpp"
#include "base/errors.hpp"

namespace dllama {

namespace {

bool isAllowed(TokenMask allowed, int token) {
    return allowed.empty() || (allowed[static_cast<size_t>(token) / 32] >> (token % 32) & 1u) != 0;
}

constexpr const char* kNotNumbers = "the model's logits are not numbers: the weights are damaged or overflowed";

}  // namespace

void checkSamplingParams(const SamplingParams& p) {
    // Limits of the value's own type: 0.01f is below 0.01.
    const auto within = [](const char* name, auto value, decltype(value) low, decltype(value) high) {
        if (!(value >= low && value <= high))
            throw ConfigError("{} is {}, must be from {} to {}", name, value, low, high);
    };
    within("temperature", p.temperature, 0.0, 100.0);
    within("top-p", p.topP, 0.0, 1.0);
    within("top-k", p.topK, 0, 1 << 30);
    within("min-p", p.minP, 0.0, 1.0);
    within("repetition penalty", p.repetitionPenalty, 0.01, 100.0);
    within("presence penalty", p.presencePenalty, -2.0, 2.0);
    within("frequency penalty", p.frequencyPenalty, -2.0, 2.0);
    for (const auto& [token, bias] : p.logitBias) within("logit bias", bias, -100.0, 100.0);
}

LogProbabilities logProbabilities(std::span<const float> logits, int token, int nTop) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(double{logit} - largest);
    const double logSum = largest + std::log(sum);
    const auto of = [&](int id) { return static_cast<float>(logits[static_cast<size_t>(id)] - logSum); };
    std::vector<int> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto end = ids.begin() + std::min<ptrdiff_t>(nTop, std::ssize(ids));
    std::partial_sort(ids.begin(), end, ids.end(), [&](int a, int b) {
        return logits[static_cast<size_t>(a)] != logits[static_cast<size_t>(b)]
                   ? logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]
                   : a < b;
    });
    LogProbabilities found{of(token)};
    for (auto id = ids.begin(); id != end; id++) found.top.emplace_back(*id, of(*id));
    return found;
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

Sampler::Sampler(const SamplingParams& params, int nPrompt) : params_(params), random_(params.seed), nPrompt_(nPrompt) {
    checkSamplingParams(params);
}

void Sampler::penalise(std::span<float> logits, std::span<const int> history) {
    for (const auto& [token, bias] : params_.logitBias) logits[static_cast<size_t>(token)] += bias;
    const bool counts =
        params_.repetitionPenalty != 1.0f || params_.presencePenalty != 0.0f || params_.frequencyPenalty != 0.0f;
    if (!counts) return;
    for (; nCounted_ < history.size(); nCounted_++)
        counts_[history[nCounted_]] += nCounted_ >= static_cast<size_t>(nPrompt_) ? 1 : 0;
    for (const auto& [token, count] : counts_) {
        float& logit = logits[static_cast<size_t>(token)];
        logit *= logit > 0.0f ? 1.0f / params_.repetitionPenalty : params_.repetitionPenalty;
        if (count > 0) logit -= params_.presencePenalty + params_.frequencyPenalty * static_cast<float>(count);
    }
}

int Sampler::sample(std::span<float> logits, std::span<const int> history, TokenMask allowed) {
    penalise(logits, history);
    candidates_.clear();
    if (params_.temperature == 0.0f && allowed.empty()) return argmax(logits);
    for (size_t i = 0; i < logits.size(); i++) {
        if (std::isnan(logits[i])) throw Error("{}", kNotNumbers);
        const int token = static_cast<int>(i);
        if (isAllowed(allowed, token)) candidates_.push_back({logits[i], token});
    }
    DLLAMA_CHECK(!candidates_.empty());
    if (params_.temperature == 0.0f) return std::min_element(candidates_.begin(), candidates_.end())->token;

    // Candidates from the most likely down, as many as the filters need: sorting a whole vocabulary is slow.
    const size_t n = candidates_.size();
    const bool limited = params_.topK > 0 && static_cast<size_t>(params_.topK) < n;
    const size_t few = limited ? static_cast<size_t>(params_.topK) : std::min<size_t>(n, kMaxTopLogits);
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(few), candidates_.end());
    if (!limited && few < n) {
        const std::vector<Candidate> all = candidates_;
        double total = 0.0;
        for (const Candidate& candidate : all)
            total += std::exp((double{candidate.weight} - all[0].weight) / params_.temperature);
        candidates_.resize(few);
        divideByTemperature();
        if (const std::optional<int> token = draw(false, total)) return *token;
        candidates_ = all;
        std::sort(candidates_.begin(), candidates_.end());
    }
    if (limited) candidates_.resize(few);
    divideByTemperature();
    return draw(true, 0.0).value();
}

int Sampler::topNeeded(const SamplingParams& params, bool isMasked) {
    const bool changesLogits = params.repetitionPenalty != 1.0f || params.presencePenalty != 0.0f ||
                               params.frequencyPenalty != 0.0f || !params.logitBias.empty();
    if (changesLogits || params.topK > kMaxTopLogits) return 0;
    // What the mask leaves of the distribution is not known from its best tokens.
    if (isMasked) return params.temperature == 0.0f ? kMaxTopLogits : 0;
    return params.temperature == 0.0f ? 1 : kMaxTopLogits;
}

std::optional<int> Sampler::sampleTop(std::span<const float> parts, int nTop, TokenMask allowed) {
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
    if (!allowed.empty())
        std::erase_if(candidates_, [&](const Candidate& candidate) { return !isAllowed(allowed, candidate.token); });
    if (candidates_.empty()) return std::nullopt;
    if (params_.temperature == 0.0f) return candidates_[0].token;
    if (!allowed.empty()) return std::nullopt;

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
