#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "arch/architecture.hpp"
#include "engine/batch-builder.hpp"
#include "engine/block-manager.hpp"
#include "engine/forward-pass.hpp"
#include "engine/prefill-policy.hpp"
#include "engine/sequence.hpp"
#include "model/embedding-table.hpp"

namespace dllama {

/// A token that a request has just got. With Finish::Length the token is part of the answer; a stop token is not.
struct TokenEvent {
    int request = 0;
    int token = 0;
    Finish finish = Finish::None;
    int nCachedPrompt = 0;  // tokens of the prompt that were found in the prefix cache
    std::optional<LogProbabilities> logprobs = std::nullopt;  // where the request wants them
};

struct StepReport {
    /// Tokens computed for requests in each phase.
    int nPrefillTokens = 0;
    int nDecodeTokens = 0;
    double seconds = 0.0;
    /// Of this step; zero on one machine.
    Traffic traffic;
    std::vector<TokenEvent> events;
};

/// Since the engine was made.
struct EngineStatistics {
    uint64_t nPrefixHitTokens = 0;  // prompt tokens that were found in the prefix cache
    uint64_t nPreemptions = 0;
};

/// Answers any number of requests at once with one model (continuous batching): each step computes as many tokens of
/// as many of them as fit. Texts with a common prefix share its KV cache, and what an ended request leaves there serves
/// the next turn of its conversation. Not thread-safe.
class Engine {
  public:
    /// All three must outlive the engine.
    Engine(const Architecture& arch, const EmbeddingTable& embeddings, ForwardPass& forward);

    /// Returns the number that its events carry. Throws ConfigError if the prompt is empty, leaves no room for an
    /// answer in the context or in the KV cache, or holds an id outside the vocabulary.
    int submit(Request request);
    /// Ends a request before its time: no more events. Nothing happens if it has ended already.
    void cancel(int request);
    bool running() const { return !sequences_.empty(); }
    /// Forgets what ended requests left in the KV cache, so that the next prompt is computed whole. Must not be called
    /// while running().
    void dropPrefixCache();

    /// Computes one batch. Must be called only while running(). A lost rank is recovered from in here: the batch is
    /// computed again from the sequences' tokens. Throws PeerLost if that is impossible.
    StepReport step();

    /// Computes `tokens` from the start and hands over the logits of each token from `outputBegin` on, in order:
    /// row(index, logits). Uses cache of its own, given back at the end. Recovers from a lost rank like step(). Throws
    /// ConfigError if the tokens do not fit into the context or into the cache that is free.
    void score(std::span<const int> tokens, int outputBegin,
               const std::function<void(int index, std::span<const float> logits)>& row);

    /// A hash of the last row of logits that was computed, the same on every run that computes the same bits. Nothing
    /// if there is none, or no rank any more that holds it. Must follow the last step.
    std::optional<uint64_t> hashLastLogits();

    /// The context length.
    int maxPositions() const { return forward_.limits().maxPositions; }
    /// Blocks of KV cache, and those that no request holds.
    int nKvBlocks() const { return blocks_.nBlocks(); }
    int nFreeKvBlocks() const { return blocks_.nFree(); }
    /// After step() has thrown PeerLost: tries once more to make steps possible. Requests start again from their
    /// tokens. Throws PeerLost if that is still impossible.
    void recover(const PeerLost& lost);
    const EngineStatistics& statistics() const { return statistics_; }

  private:
    struct Scheduled {
        std::vector<Sequence*> sequences;
        std::vector<int> counts;
    };

    StepReport tryStep();
    Scheduled scheduleStep();
    void preempt(Sequence& sequence);
    struct Drawn {
        int token = 0;
        std::optional<LogProbabilities> logprobs;
    };
    std::vector<Drawn> sampleRows(std::span<Sequence* const> rows, int nTop);
    TokenMask allowedTokens(Sequence& sequence);
    /// Appends the next token and says whether the answer ends with it.
    Finish append(Sequence& sequence, int token);
    void scoreFrom(const std::vector<int>& blocks, std::span<const int> tokens, int& told,
                   const std::function<void(int index, std::span<const float> logits)>& row);

    const Architecture& arch_;
    const EmbeddingTable& embeddings_;
    ForwardPass& forward_;
    BlockManager blocks_;
    std::map<int, Sequence> sequences_;  // in the order of arrival
    int nextId_ = 0;
    EngineStatistics statistics_;
    bool hasLogits_ = false;  // of the last step
    std::vector<float> best_, logits_;
    std::vector<uint32_t> allowed_;
    PrefillPolicy prefill_;
};

/// Submits the request and steps until it has ended: its new tokens, without a stop token. For programs with one
/// request at a time.
std::vector<int> answer(Engine& engine, Request request);

}  // namespace dllama
