#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "arch/architecture.hpp"
#include "backend/backend.hpp"
#include "model/decoder-hooks.hpp"
#include "model/layer.hpp"
#include "model/tracing.hpp"
#include "model/weights.hpp"
#include "parallel/communicator.hpp"
#include "parallel/shard-plan.hpp"

namespace dllama {

/// What one step may hold at most, and how much KV cache there is.
struct DecoderLimits {
    int maxTokens = 512;   // tokens in a batch
    int maxOutputs = 64;   // rows of logits in a batch
    int nKvBlocks = 0;     // blocks of kKvBlockPositions positions in the cache of each layer
    int maxPositions = 0;  // positions that RoPE tables cover
    DType kvType = DType::F16;
};

/// The forward pass of one rank, from embedding rows to this rank's slice of the logits. Everything it refers to must
/// outlive it. Not thread-safe.
class Decoder {
  public:
    Decoder(const Architecture& arch, const ShardPlan& plan, int rank, const RankWeights& weights, Backend& backend,
            Communicator& comm, const DecoderLimits& limits, const DecoderHooks& hooks = {});

    /// Runs one step. If batch.nTop is not 0, `best` becomes, on rank 0, (nOutputs, nRanks * topLogitsCols(nTop)):
    /// what each rank found in its part of the vocabulary. Throws PeerLost if a rank is lost on the way; the KV cache
    /// is then undefined.
    void forward(const Batch& batch, std::vector<float>& best);
    /// Brings all logits of the last step to rank 0: (nOutputs, vocab size). Every rank must call it, or none.
    void gatherLogits(std::vector<float>& logits);
    /// True if gatherLogits() costs next to nothing, so that there is no point in looking for the best ones.
    bool logitsAreNear() const { return plan_.nRanks() == 1 && backend_.isHost(); }

    /// True if batches may go in microbatches. False where tokens see later ones or have two positions (the original
    /// GLM), and where sums do not travel while this rank computes.
    bool canMicrobatch() const {
        return comm_.overlaps() && !arch_.prefixMask && arch_.ropeParts == 1 && hooks_.dump == nullptr;
    }

    const DecoderLimits& limits() const { return limits_; }
    size_t kvBytes() const { return kvBytes_; }

    /// Bytes of KV cache that one position takes on a rank of this shape, over all layers.
    static size_t kvBytesPerPosition(const Architecture& arch, const AttentionShape& shape, DType kvType);
    /// Bytes of the activation buffers on a rank, for memory reports.
    static size_t bufferBytes(const Architecture& arch, const RankShare& share, const DecoderLimits& limits);

  private:
    /// normed = the last norm behind all layers of x = the embedding rows.
    void runLayers(const StepInputs& step);
    /// The same, half of the tokens after the other: one half is computed during the other's all-reduce.
    void runLayersMicrobatched(const StepInputs& step);
    void embed(const StepInputs& step);
    const Tracer* tracer() const { return tracer_ ? &*tracer_ : nullptr; }
    void gather(const Activations& from, std::span<const int> colsOfRank, std::vector<float>& all);

    const Architecture& arch_;
    const ShardPlan& plan_;
    const int rank_;
    const RankWeights& weights_;
    const DecoderHooks hooks_;
    const std::optional<Tracer> tracer_;
    std::optional<TracingBackend> tracingBackend_;
    std::optional<TracingCommunicator> tracingCommunicator_;
    Backend& backend_;  // those given, or the tracing ones around them
    Communicator& comm_;
    const DecoderLimits limits_;
    const AttentionShape shape_;

    Rope rope_;
    const LayerContext context_;
    std::vector<KvLayer> kv_;    // one a layer
    std::vector<Layer> layers_;  // with what comes behind each
    size_t kvBytes_ = 0;
    std::vector<int> vocabularySizes_;  // of each rank's slice

    StepBuffers buffers_;
    Activations last_;     // (nOutputs, dim)
    Activations logits_;   // (nOutputs, vocabulary slice)
    Activations best_[2];  // (nOutputs, topLogitsCols(1) or topLogitsCols(kMaxTopLogits))
    int nOutputs_ = 0;     // of the last step
    std::vector<float> local_;
};

}  // namespace dllama
