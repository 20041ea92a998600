#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "arch/architecture.hpp"
#include "engine/batch-builder.hpp"
#include "engine/block-pool.hpp"
#include "engine/forward-pass.hpp"
#include "engine/sequence.hpp"
#include "model/embedding-table.hpp"

namespace dllama {

/// A token that a sequence has just got. With Finish::Length the token is part of the answer; a stop token is not.
struct TokenEvent {
    int sequence = 0;
    int token = 0;
    Finish finish = Finish::None;
};

struct StepReport {
    /// Prompt tokens computed, and tokens computed for sequences that are writing.
    int nPrefillTokens = 0;
    int nDecodeTokens = 0;
    double seconds = 0.0;
    /// Of this step; zero on one machine.
    Traffic traffic;
    std::vector<TokenEvent> events;
};

/// Sequences that share one model. Each step computes as many tokens of as many of them as fit. Not thread-safe.
class Engine {
  public:
    /// All three must outlive the engine.
    Engine(const Architecture& arch, const EmbeddingTable& embeddings, ForwardPass& forward);

    /// Reserves KV cache for up to `maxPositions` positions. Throws ConfigError if that is more than what is free or
    /// more than the context.
    int open(int maxPositions);
    void close(int sequence);

    /// Starts an answer to `tokens`, the whole conversation so far: what the cache already holds of it is kept. Throws
    /// ConfigError if the prompt is empty, does not fit, or holds an id outside the vocabulary.
    void start(int sequence, std::vector<int> tokens, const SamplingParams& sampling, const StopRule& stop);
    /// Ends a running answer; its tokens stay.
    void cancel(int sequence);
    bool running() const;
    const std::vector<int>& tokens(int sequence) const { return sequences_.at(sequence).tokens; }

    /// Computes one batch. Must be called only while running(). A lost rank is recovered from in here: the batch is
    /// computed again from the sequences' tokens. Throws PeerLost if that is impossible.
    StepReport step();

    /// Computes `tokens` from the start and hands over the logits of each token from `outputBegin` on, in order:
    /// row(index, logits). Uses cache of its own, given back at the end. Recovers from a lost rank like step().
    void score(std::span<const int> tokens, int outputBegin,
               const std::function<void(int index, std::span<const float> logits)>& row);

    int maxPositions() const { return forward_.limits().maxPositions; }

  private:
    StepReport tryStep();
    std::vector<int> sampleRows(std::span<Sequence* const> rows, int nTop);
    void deliver(Sequence& sequence, int token, StepReport& report);
    void scoreFrom(const std::vector<int>& blocks, std::span<const int> tokens, int& told,
                   const std::function<void(int index, std::span<const float> logits)>& row);
    void recover(const PeerLost& lost);

    const Architecture& arch_;
    const EmbeddingTable& embeddings_;
    ForwardPass& forward_;
    BlockPool blocks_;
    std::map<int, Sequence> sequences_;
    int nextId_ = 0;
    std::vector<float> best_, logits_;
};

}  // namespace dllama
