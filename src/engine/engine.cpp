#include "engine/engine.hpp"

#include <xxhash.h>

#include <algorithm>
#include <chrono>

#include "base/errors.hpp"
#include "engine/scheduler.hpp"

namespace dllama {

Engine::Engine(const Architecture& arch, const EmbeddingTable& embeddings, ForwardPass& forward)
    : arch_(arch), embeddings_(embeddings), forward_(forward), blocks_(forward.limits().nKvBlocks, !arch.prefixMask) {}

int Engine::submit(Request request) {
    const int n = static_cast<int>(request.tokens.size());
    const int positions = std::min(maxPositions(), blocks_.nBlocks() * kKvBlockPositions);
    if (n == 0) throw ConfigError("the prompt is empty");
    if (n >= positions)
        throw ConfigError("the prompt has {} tokens, the context {}: no room for an answer", n, positions);
    embeddings_.rows(request.tokens);  // throws for an impossible id
    const int prefix = prefixLength(arch_, request.tokens);
    if (prefix > forward_.limits().maxTokens)
        throw ConfigError("this model computes a prompt in one step: {} tokens, a step has {}", prefix,
                          forward_.limits().maxTokens);
    for (const auto& [token, bias] : request.sampling.logitBias)
        if (token < 0 || token >= arch_.config.vocabSize)
            throw ConfigError("logit bias of token {}, must be from 0 to {}", token, arch_.config.vocabSize - 1);
    const int id = nextId_++;
    if (request.stop.maxTokens == 0) return id;
    Sequence& sequence = sequences_[id];
    sequence.tokens = std::move(request.tokens);
    sequence.nPrompt = n;
    sequence.stop = std::move(request.stop);
    sequence.sampler.emplace(request.sampling, n);
    sequence.constraint = std::move(request.constraint);
    sequence.nLogprobs = request.nLogprobs;
    return id;
}

void Engine::cancel(int request) {
    const auto found = sequences_.find(request);
    if (found == sequences_.end()) return;
    const Sequence& sequence = found->second;
    blocks_.release(sequence.tokens, sequence.blocks, sequence.nCached);
    sequences_.erase(found);
}

void Engine::dropPrefixCache() {
    DLLAMA_CHECK(!running());
    blocks_.invalidate();
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

/// Its tokens stay; what the cache still holds of them is found again when it comes back.
void Engine::preempt(Sequence& sequence) {
    blocks_.release(sequence.tokens, sequence.blocks, sequence.nCached);
    sequence.blocks.clear();
    sequence.nCached = 0;
    sequence.started = false;
    sequence.phase = Sequence::Phase::Prefill;
}

/// Chooses what the next step computes and gets the blocks for it.
Engine::Scheduled Engine::scheduleStep() {
    const DecoderLimits& limits = forward_.limits();
    for (;;) {
        Scheduled step;
        std::vector<Pending> pending;
        for (auto& [id, sequence] : sequences_) {
            if (sequence.blocks.empty()) {
                // At least one token must be computed for its logits.
                BlockManager::Prefix prefix =
                    blocks_.acquire(std::span(sequence.tokens).first(sequence.tokens.size() - 1));
                sequence.blocks = std::move(prefix.blocks);
                sequence.nCached = prefix.nCached;
                if (sequence.nCachedPrompt == 0 && sequence.nPrompt == static_cast<int>(sequence.tokens.size()))
                    sequence.nCachedPrompt = prefix.nCached;
                statistics_.nPrefixHitTokens += static_cast<uint64_t>(prefix.nCached);
            }
            const int indivisible = std::max(0, prefixLength(arch_, sequence.tokens) - sequence.nCached);
            const auto own = std::count_if(sequence.blocks.begin(), sequence.blocks.end(),
                                           [&](int block) { return blocks_.references(block) == 1; });
            step.sequences.push_back(&sequence);
            pending.push_back({sequence.nUncached(), indivisible, sequence.phase == Sequence::Phase::Decode,
                               sequence.started, sequence.nCached, static_cast<int>(sequence.blocks.size()),
                               static_cast<int>(own)});
        }
        Schedule chosen =
            schedule(pending, {limits.maxTokens, limits.maxOutputs, blocks_.nFree(), prefill_.tokensBesideDecode()});
        for (const int i : chosen.preempted) {
            preempt(*step.sequences[i]);
            statistics_.nPreemptions++;
        }
        step.counts = std::move(chosen.counts);
        bool isEmpty = true;
        for (size_t i = 0; i < step.sequences.size(); i++) {
            if (step.counts[i] == 0) continue;
            Sequence& sequence = *step.sequences[i];
            DLLAMA_CHECK(blocks_.grow(sequence.blocks, sequence.nCached + step.counts[i]));
            sequence.started = true;
            isEmpty = false;
        }
        if (!isEmpty) return step;
        DLLAMA_CHECK(!chosen.preempted.empty());
    }
}

StepReport Engine::tryStep() {
    const Scheduled scheduled = scheduleStep();
    StepReport report;
    std::vector<BatchPart> parts;
    std::vector<Sequence*> finishing;  // those whose next token this step decides
    for (size_t i = 0; i < scheduled.sequences.size(); i++) {
        const int count = scheduled.counts[i];
        if (count == 0) continue;
        Sequence& sequence = *scheduled.sequences[i];
        const int end = sequence.nCached + count;
        const bool complete = end == static_cast<int>(sequence.tokens.size());
        parts.push_back({sequence.tokens, sequence.blocks, sequence.nCached, end, complete ? end - 1 : end});
        if (complete) finishing.push_back(&sequence);
        (sequence.phase == Sequence::Phase::Decode ? report.nDecodeTokens : report.nPrefillTokens) += count;
    }

    const auto begin = std::chrono::steady_clock::now();
    const Traffic before = forward_.traffic();
    Batch batch = buildBatch(arch_, embeddings_, parts);
    if (!forward_.logitsAreNear())
        for (const Sequence* sequence : finishing) {
            batch.nTop = std::max(batch.nTop, sequence->topNeeded());
            batch.outputTemperatures.push_back(sequence->sampler->params().temperature);
        }
    forward_.forward(batch, best_);
    std::vector<Drawn> drawn = sampleRows(finishing, batch.nTop);
    hasLogits_ = batch.nOutputs() > 0;
    const Traffic after = forward_.traffic();
    report.traffic = {after.syncSeconds - before.syncSeconds, after.sentBytes - before.sentBytes,
                      after.receivedBytes - before.receivedBytes};

    for (size_t i = 0; i < scheduled.sequences.size(); i++) {
        Sequence& sequence = *scheduled.sequences[i];
        const int nFull = sequence.nCached / kKvBlockPositions;
        sequence.nCached += scheduled.counts[i];
        if (sequence.nCached / kKvBlockPositions > nFull)
            blocks_.publish(sequence.tokens, sequence.blocks, sequence.nCached);
    }
    size_t row = 0;
    for (auto entry = sequences_.begin(); entry != sequences_.end();) {
        const auto current = entry++;
        if (row == finishing.size() || &current->second != finishing[row]) continue;
        Drawn& next = drawn[row++];
        const Finish finish = append(current->second, next.token);
        report.events.push_back(
            {current->first, next.token, finish, current->second.nCachedPrompt, std::move(next.logprobs)});
        if (finish != Finish::None) cancel(current->first);
    }
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    prefill_.stepTook(report.nPrefillTokens, report.nDecodeTokens, report.seconds);
    return report;
}

/// The bits of the tokens that may come next, in allowed_; empty: all.
TokenMask Engine::allowedTokens(Sequence& sequence) {
    if (!sequence.isMasked()) return {};
    const auto set = [&](int token, bool on) {
        const uint32_t bit = uint32_t{1} << (token % 32);
        uint32_t& word = allowed_[static_cast<size_t>(token) / 32];
        word = on ? word | bit : word & ~bit;
    };
    const auto vocabulary = static_cast<size_t>(arch_.config.vocabSize);
    allowed_.assign((vocabulary + 31) / 32, ~uint32_t{0});
    const bool constrains = sequence.constraint && sequence.constraint->constrains();
    if (constrains) sequence.constraint->mask(allowed_);
    const int nNew = static_cast<int>(sequence.tokens.size()) - sequence.nPrompt;
    const bool mayEnd = nNew >= sequence.stop.minTokens && (!constrains || sequence.constraint->mayEnd());
    for (const int token : sequence.stop.stopTokens) set(token, mayEnd);
    // A constraint that leaves no way on ends the answer rather than the program.
    const auto isEmpty = [&] {
        return std::all_of(allowed_.begin(), allowed_.end(), [](uint32_t w) { return w == 0; });
    };
    if (isEmpty())
        for (const int token : sequence.stop.stopTokens) set(token, true);
    return isEmpty() ? TokenMask() : TokenMask(allowed_);
}

/// The next token of each sequence: from the best logits if they decide it, from the whole row otherwise.
std::vector<Engine::Drawn> Engine::sampleRows(std::span<Sequence* const> rows, int nTop) {
    const size_t vocabulary = static_cast<size_t>(arch_.config.vocabSize);
    std::vector<Drawn> drawn;
    std::vector<Sampler::Random> before;
    bool gathered = false;
    for (size_t i = 0; i < rows.size(); i++) {
        Sequence& sequence = *rows[i];
        before.push_back(sequence.sampler->random());
        const TokenMask allowed = allowedTokens(sequence);
        std::optional<int> token;
        if (nTop > 0 && sequence.topNeeded() > 0) {
            const size_t cols = best_.size() / rows.size();
            token = sequence.sampler->sampleTop(std::span(best_).subspan(i * cols, cols), nTop, allowed);
        }
        Drawn& next = drawn.emplace_back();
        if (!token) {
            if (!gathered) try {
                    forward_.gatherLogits(logits_);
                    gathered = true;
                } catch (const PeerLost&) {
                    // The step will be computed again: it shall draw the same numbers.
                    for (size_t j = 0; j <= i; j++) rows[j]->sampler->restore(before[j]);
                    throw;
                }
            const std::span<float> row = std::span(logits_).subspan(i * vocabulary, vocabulary);
            std::vector<float> bare;
            if (sequence.nLogprobs >= 0) bare.assign(row.begin(), row.end());
            token = sequence.sampler->sample(row, sequence.tokens, allowed);
            if (sequence.nLogprobs >= 0) next.logprobs = logProbabilities(bare, *token, sequence.nLogprobs);
        }
        next.token = *token;
    }
    return drawn;
}

Finish Engine::append(Sequence& sequence, int token) {
    const std::vector<int>& stops = sequence.stop.stopTokens;
    sequence.tokens.push_back(token);
    sequence.phase = Sequence::Phase::Decode;
    const int n = static_cast<int>(sequence.tokens.size());
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) return Finish::StopToken;
    if (sequence.constraint) {
        sequence.constraint->accept(token);
        if (sequence.constraint->mustEnd()) return Finish::Complete;
    }
    const int positions = std::min(maxPositions(), blocks_.nBlocks() * kKvBlockPositions);
    if (n - sequence.nPrompt == sequence.stop.maxTokens || n >= positions) return Finish::Length;
    return Finish::None;
}

void Engine::score(std::span<const int> tokens, int outputBegin,
                   const std::function<void(int index, std::span<const float> logits)>& row) {
    const int n = static_cast<int>(tokens.size());
    if (n < 1 || n > maxPositions())
        throw ConfigError("{} positions were asked for, the context has {}", n, maxPositions());
    std::vector<int> blocks;
    if (!blocks_.grow(blocks, n))
        throw ConfigError("{} positions need {} blocks of KV cache, {} are free", n, BlockManager::missing({}, n),
                          blocks_.nFree());
    try {
        for (int told = outputBegin;;) {
            try {
                scoreFrom(blocks, tokens, told, row);
                break;
            } catch (const PeerLost& lost) {
                recover(lost);
            }
        }
    } catch (...) {
        blocks_.release(tokens, blocks, 0);
        throw;
    }
    blocks_.release(tokens, blocks, 0);
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
        hasLogits_ = first < end;
        if (!hasLogits_) continue;
        forward_.gatherLogits(logits_);
        for (int i = first; i < end; i++, told++)
            row(i, std::span<const float>(logits_).subspan((i - first) * vocabulary, vocabulary));
    }
}

std::optional<uint64_t> Engine::hashLastLogits() {
    if (!hasLogits_) return std::nullopt;
    try {
        forward_.gatherLogits(logits_);
    } catch (const PeerLost&) {
        return std::nullopt;
    }
    const auto row = std::span<const float>(logits_).last(static_cast<size_t>(arch_.config.vocabSize));
    return XXH3_64bits(row.data(), row.size_bytes());
}

/// After a loss nothing is cached any more.
void Engine::recover(const PeerLost& lost) {
    hasLogits_ = false;
    blocks_.invalidate();
    for (auto& [id, sequence] : sequences_) {
        sequence.nCached = 0;
        preempt(sequence);
    }
    forward_.recover(lost);
}

std::vector<int> answer(Engine& engine, Request request) {
    const int id = engine.submit(std::move(request));
    std::vector<int> tokens;
    for (bool running = engine.running(); running;) {
        for (const TokenEvent& event : engine.step().events) {
            if (event.request != id) continue;
            if (event.finish != Finish::StopToken) tokens.push_back(event.token);
            running = event.finish == Finish::None;
        }
    }
    return tokens;
}

}  // namespace dllama
