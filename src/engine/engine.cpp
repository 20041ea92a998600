#include "engine/engine.hpp"

#include <algorithm>
#include <chrono>

#include "base/errors.hpp"
#include "engine/scheduler.hpp"

namespace dllama {

Engine::Engine(const Architecture& arch, const EmbeddingTable& embeddings, ForwardPass& forward)
    : arch_(arch), embeddings_(embeddings), forward_(forward), blocks_(forward.limits().nKvBlocks) {}

int Engine::open(int maxPositions) {
    if (maxPositions < 1 || maxPositions > this->maxPositions())
        throw ConfigError("{} positions were asked for, the context has {}", maxPositions, this->maxPositions());
    const int needed = (maxPositions + kKvBlockPositions - 1) / kKvBlockPositions;
    if (needed > blocks_.nFree())
        throw ConfigError("{} positions need {} blocks of KV cache, {} are free", maxPositions, needed,
                          blocks_.nFree());
    Sequence& sequence = sequences_[nextId_];
    sequence.id = nextId_;
    sequence.maxPositions = maxPositions;
    for (int i = 0; i < needed; i++) sequence.blocks.push_back(blocks_.take());
    return nextId_++;
}

void Engine::close(int sequence) {
    for (int block : sequences_.at(sequence).blocks) blocks_.give(block);
    sequences_.erase(sequence);
}

void Engine::start(int id, std::vector<int> tokens, const SamplingParams& sampling, const StopRule& stop) {
    Sequence& sequence = sequences_.at(id);
    const int n = static_cast<int>(tokens.size());
    if (n == 0) throw ConfigError("the prompt is empty");
    if (n >= sequence.maxPositions)
        throw ConfigError("the prompt has {} tokens, the context {}: no room for an answer", n, sequence.maxPositions);
    embeddings_.rows(tokens);  // throws for an impossible id before anything changes
    const int prefix = prefixLength(arch_, tokens);
    if (prefix > forward_.limits().maxTokens)
        throw ConfigError("this model computes a prompt in one step: {} tokens, a step has {}", prefix,
                          forward_.limits().maxTokens);

    // At least one token must be computed for its logits; a cached prefix that saw other tokens is worthless.
    const auto common = std::mismatch(tokens.begin(), tokens.end(), sequence.tokens.begin(), sequence.tokens.end());
    const int same = static_cast<int>(common.first - tokens.begin());
    sequence.nCached = arch_.prefixMask ? 0 : std::min({same, sequence.nCached, n - 1});
    sequence.tokens = std::move(tokens);
    sequence.nPrompt = n;
    sequence.stop = stop;
    sequence.sampler.emplace(sampling);
    sequence.running = stop.maxTokens != 0;
}

void Engine::cancel(int sequence) {
    sequences_.at(sequence).running = false;
}

bool Engine::running() const {
    return std::any_of(sequences_.begin(), sequences_.end(), [](const auto& entry) { return entry.second.running; });
}

StepReport Engine::step() {
    for (;;) {
        try {
            return tryStep();
        } catch (const PeerLost& lost) {
            recover(lost);
        }
    }
}

StepReport Engine::tryStep() {
    std::vector<Sequence*> active;
    std::vector<Pending> pending;
    for (auto& [id, sequence] : sequences_) {
        if (!sequence.running) continue;
        active.push_back(&sequence);
        const int prefix = prefixLength(arch_, sequence.tokens);
        pending.push_back({sequence.nUncached(), std::max(0, prefix - sequence.nCached)});
    }
    const DecoderLimits& limits = forward_.limits();
    const std::vector<int> counts = schedule(pending, limits.maxTokens, limits.maxOutputs);

    StepReport report;
    std::vector<BatchPart> parts;
    std::vector<Sequence*> finishing;  // those whose next token this step decides
    for (size_t i = 0; i < active.size(); i++) {
        if (counts[i] == 0) continue;
        const Sequence& sequence = *active[i];
        const int end = sequence.nCached + counts[i];
        const bool complete = end == static_cast<int>(sequence.tokens.size());
        parts.push_back({sequence.tokens, sequence.blocks, sequence.nCached, end, complete ? end - 1 : end});
        if (complete) finishing.push_back(active[i]);
        (sequence.nCached >= sequence.nPrompt ? report.nDecodeTokens : report.nPrefillTokens) += counts[i];
    }
    DLLAMA_CHECK(!parts.empty());

    const auto begin = std::chrono::steady_clock::now();
    const Traffic before = forward_.traffic();
    Batch batch = buildBatch(arch_, embeddings_, parts);
    if (!forward_.logitsAreNear())
        for (const Sequence* sequence : finishing) {
            batch.nTop = std::max(batch.nTop, Sampler::topNeeded(sequence->sampler->params()));
            batch.outputTemperatures.push_back(sequence->sampler->params().temperature);
        }
    forward_.forward(batch, best_);
    const std::vector<int> tokens = sampleRows(finishing, batch.nTop);
    const Traffic after = forward_.traffic();
    report.traffic = {after.syncSeconds - before.syncSeconds, after.sentBytes - before.sentBytes,
                      after.receivedBytes - before.receivedBytes};

    for (size_t i = 0; i < active.size(); i++) active[i]->nCached += counts[i];
    for (size_t row = 0; row < finishing.size(); row++) deliver(*finishing[row], tokens[row], report);
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return report;
}

/// The next token of each sequence: from the best logits if they decide it, from the whole row otherwise.
std::vector<int> Engine::sampleRows(std::span<Sequence* const> rows, int nTop) {
    std::vector<int> tokens;
    std::vector<Sampler> before;
    bool gathered = false;
    for (size_t i = 0; i < rows.size(); i++) {
        Sequence& sequence = *rows[i];
        before.push_back(*sequence.sampler);
        std::optional<int> token;
        if (nTop > 0 && Sampler::topNeeded(sequence.sampler->params()) > 0) {
            const size_t cols = best_.size() / rows.size();
            token = sequence.sampler->sampleTop(std::span(best_).subspan(i * cols, cols), nTop);
        }
        if (!token) {
            if (!gathered) try {
                    forward_.gatherLogits(logits_);
                    gathered = true;
                } catch (const PeerLost&) {
                    // The step will be computed again: it shall draw the same numbers.
                    for (size_t j = 0; j <= i; j++) *rows[j]->sampler = before[j];
                    throw;
                }
            const size_t vocabulary = static_cast<size_t>(arch_.config.vocabSize);
            token = sequence.sampler->sample(std::span(logits_).subspan(i * vocabulary, vocabulary), sequence.tokens);
        }
        tokens.push_back(*token);
    }
    return tokens;
}

/// Appends the sequence's next token and decides whether its answer ends.
void Engine::deliver(Sequence& sequence, int token, StepReport& report) {
    const std::vector<int>& stops = sequence.stop.stopTokens;
    const int nAnswer = static_cast<int>(sequence.tokens.size()) + 1 - sequence.nPrompt;
    Finish finish = Finish::None;
    if (std::find(stops.begin(), stops.end(), token) != stops.end())
        finish = Finish::StopToken;
    else if (nAnswer == sequence.stop.maxTokens ||
             static_cast<int>(sequence.tokens.size()) + 1 >= sequence.maxPositions)
        finish = Finish::Length;
    sequence.tokens.push_back(token);
    sequence.running = finish == Finish::None;
    report.events.push_back({sequence.id, token, finish});
}

void Engine::score(std::span<const int> tokens, int outputBegin,
                   const std::function<void(int index, std::span<const float> logits)>& row) {
    const int sequence = open(static_cast<int>(tokens.size()));
    try {
        for (int told = outputBegin;;) {
            try {
                scoreFrom(sequences_.at(sequence).blocks, tokens, told, row);
                break;
            } catch (const PeerLost& lost) {
                recover(lost);
            }
        }
    } catch (...) {
        close(sequence);
        throw;
    }
    close(sequence);
}

/// Hands over the rows from `told` on, and moves it along.
void Engine::scoreFrom(const std::vector<int>& blocks, std::span<const int> tokens, int& told,
                       const std::function<void(int index, std::span<const float> logits)>& row) {
    const int n = static_cast<int>(tokens.size());
    const int prefix = prefixLength(arch_, tokens);
    const DecoderLimits& limits = forward_.limits();
    const size_t vocabulary = static_cast<size_t>(arch_.config.vocabSize);
    for (int begin = 0, end = 0; begin < n; begin = end) {
        end = std::min(n, begin + std::min(limits.maxTokens, limits.maxOutputs));
        if (begin < prefix) end = std::max(end, prefix);
        const int first = std::max(begin, told);
        if (end - begin > limits.maxTokens || end - first > limits.maxOutputs)
            throw ConfigError("this model computes a prompt in one step: {} tokens, a step has {} and {} outputs",
                              prefix, limits.maxTokens, limits.maxOutputs);
        const BatchPart part{tokens, blocks, begin, end, first};
        forward_.forward(buildBatch(arch_, embeddings_, std::span(&part, 1)), best_);
        if (first >= end) continue;
        forward_.gatherLogits(logits_);
        for (int i = first; i < end; i++, told++)
            row(i, std::span<const float>(logits_).subspan((i - first) * vocabulary, vocabulary));
    }
}

/// After a loss nothing is cached any more.
void Engine::recover(const PeerLost& lost) {
    forward_.recover(lost);
    for (auto& [id, sequence] : sequences_) sequence.nCached = 0;
}

}  // namespace dllama
