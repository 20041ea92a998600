#include "model/decoder.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/errors.hpp"
#include "model/layer-dump.hpp"

namespace dllama {

namespace {

LatentShape latentShape(const ModelConfig& c, int nHeads) {
    if (!c.isLatent()) return {};
    return {nHeads, c.kvLoraRank, c.qkNopeHeadDim, c.rotaryDim, c.vHeadDim};
}

/// Columns of the buffers of latent attention on a rank of nHeads heads.
struct LatentCols {
    int projected = 0, queryLatent = 0, q = 0, plain = 0, queries = 0, mixed = 0;

    LatentCols(const ModelConfig& c, int nHeads) {
        if (!c.isLatent() || nHeads == 0) return;
        const LatentShape shape = latentShape(c, nHeads);
        queryLatent = c.qLoraRank;
        q = queryLatent > 0 ? nHeads * shape.queryDim() : 0;
        projected = (queryLatent > 0 ? queryLatent : nHeads * shape.queryDim()) + shape.rowDim();
        plain = nHeads * shape.plainDim;
        queries = nHeads * shape.rowDim();
        mixed = nHeads * shape.latentDim;
    }
    int sum() const { return projected + queryLatent + q + plain + queries + mixed; }
};

}  // namespace

Decoder::Decoder(const Architecture& arch, const ShardPlan& plan, int rank, const RankWeights& weights,
                 Backend& backend, Communicator& comm, const DecoderLimits& limits, const DecoderHooks& hooks)
    : arch_(arch),
      plan_(plan),
      rank_(rank),
      weights_(weights),
      hooks_(hooks),
      tracer_(hooks.trace ? std::optional<Tracer>({*hooks.trace, backend, rank}) : std::nullopt),
      backend_(tracer_ ? tracingBackend_.emplace(*tracer_) : backend),
      comm_(tracer_ ? tracingCommunicator_.emplace(comm, *tracer_) : comm),
      limits_(limits),
      shape_(plan.attentionShape(rank)),
      context_{arch, backend_, comm_, shape_, latentShape(arch.config, shape_.nHeads), rope_} {
    if (tracer_) tracer_->trace.nameRank(rank, backend.name());
    const ModelConfig& c = arch.config;
    const RankShare& share = plan.share(rank);

    const RopeTables tables = makeRopeTables(arch, limits.maxPositions);
    rope_.style = arch.ropeStyle;
    rope_.parts = arch.ropeParts;
    rope_.rotaryDim = tables.rotaryDim;
    rope_.cos = backend.uploadVector(tables.cos.data(), static_cast<int64_t>(tables.cos.size()));
    rope_.sin = backend.uploadVector(tables.sin.data(), static_cast<int64_t>(tables.sin.size()));

    for (int layer = 0; layer < c.nLayers; layer++)
        kv_.push_back(c.isLatent()
                          ? backend.allocateLatentLayer(limits.kvType, shape_.nHeads > 0 ? limits.nKvBlocks : 0,
                                                        context_.latent.rowDim())
                          : backend.allocateKvLayer(limits.kvType, limits.nKvBlocks, shape_.nKvHeads, c.headDim));
    for (size_t i = 0; i < weights.layers.size(); i++) {
        const LayerWeights* next = i + 1 < weights.layers.size() ? &weights.layers[i + 1] : nullptr;
        layers_.push_back({&weights.layers[i], &kv_[i], next ? &next->attnNorm : &weights.finalNorm,
                           next ? next->qkv.get() : weights.head.get()});
    }
    kvBytes_ = kvBytesPerPosition(arch, shape_, limits.kvType) * limits.nKvBlocks * kKvBlockPositions;
    for (int r = 0; r < plan.nRanks(); r++) vocabularySizes_.push_back(plan.share(r).vocabulary.size());

    const int rows = limits.maxTokens;
    buffers_.x = backend.allocateActivations(rows, c.hiddenSize, false);
    buffers_.normed = backend.allocateActivations(rows, c.hiddenSize, true);
    const LatentCols latent(c, shape_.nHeads);
    buffers_.qkv = backend.allocateActivations(rows, c.isLatent() ? latent.projected : shape_.qkvCols(), false);
    buffers_.latent = {
        backend.allocateActivations(rows, latent.queryLatent, true), backend.allocateActivations(rows, latent.q, false),
        backend.allocateActivations(rows, latent.plain, true), backend.allocateActivations(rows, latent.queries, false),
        backend.allocateActivations(rows, latent.mixed, true)};
    buffers_.context = backend.allocateActivations(rows, shape_.nHeads * c.valueDim(), true);
    buffers_.hidden = backend.allocateActivations(rows, share.ffn.size(), true);
    buffers_.shared = backend.allocateActivations(rows, share.shared.size(), true);
    buffers_.y = backend.allocateActivations(rows, c.hiddenSize, false);
    if (c.isMoe()) buffers_.routing = backend.allocateRouting(rows, c.nExpertsPerToken);
    last_ = backend.allocateActivations(limits.maxOutputs, c.hiddenSize, true);
    logits_ = backend.allocateActivations(limits.maxOutputs, share.vocabulary.size(), false);
    best_[0] = backend.allocateActivations(limits.maxOutputs, topLogitsCols(1), false);
    best_[1] = backend.allocateActivations(limits.maxOutputs, topLogitsCols(kMaxTopLogits), false);
}

void Decoder::forward(const Batch& batch, std::vector<float>& best) {
    DLLAMA_CHECK(batch.nTokens > 0 && batch.nTokens <= limits_.maxTokens && batch.nOutputs() <= limits_.maxOutputs);
    DLLAMA_CHECK(batch.nTop == 0 || batch.nTop == 1 || batch.nTop == kMaxTopLogits);
    const TraceSpan span(tracer(), "step", "step", -1, {"tokens", batch.nTokens}, {"sequences", batch.nSequences});
    const StepInputs& step = backend_.upload(batch);
    const int nTop = batch.nTop;
    Activations& bestOut = best_[nTop > 1 ? 1 : 0];
    nOutputs_ = step.nOutputs;

    // Attention kernels may size their work by the context's bucket, so it is part of the shape.
    const std::string shape = fmt::format("{}/{}/{}/{}/{}", step.nTokens, step.nSequences, nOutputs_, nTop,
                                          std::bit_ceil(static_cast<unsigned>(step.maxContextLength)));
    backend_.run(shape, [&] {
        if (batch.microbatched && canMicrobatch())
            runLayersMicrobatched(step);
        else
            runLayers(step);
        if (nOutputs_ == 0) return;
        if (weights_.head) {
            backend_.gatherOutputs(step, buffers_.normed, last_);
            backend_.head(step, last_, *weights_.head, logits_);
        }
        if (nTop > 0) backend_.topLogits(step, logits_, plan_.share(rank_).vocabulary.begin, nTop, bestOut);
    });

    best.clear();
    if (nOutputs_ == 0 || nTop == 0) return;
    gather(bestOut, std::vector<int>(plan_.nRanks(), bestOut.cols), best);
}

void Decoder::gatherLogits(std::vector<float>& logits) {
    const TraceSpan span(tracer(), "step", "gatherLogits", -1, {"outputs", nOutputs_});
    gather(logits_, vocabularySizes_, logits);
}

/// The rows of all ranks side by side on rank 0.
void Decoder::gather(const Activations& from, std::span<const int> colsOfRank, std::vector<float>& all) {
    all.resize(rank_ == 0 ? static_cast<size_t>(nOutputs_) * std::accumulate(colsOfRank.begin(), colsOfRank.end(), 0)
                          : 0);
    if (plan_.nRanks() == 1) return backend_.download(from, nOutputs_, all.data());
    local_.resize(static_cast<size_t>(nOutputs_) * colsOfRank[rank_]);
    backend_.download(from, nOutputs_, local_.data());
    comm_.gatherRows(local_, nOutputs_, colsOfRank, all.data());
}

void Decoder::embed(const StepInputs& step) {
    backend_.embed(step, buffers_.x);
    backend_.addNorm(step, {.x = &buffers_.x, .next = &weights_.layers[0].attnNorm, .out = &buffers_.normed});
}

void Decoder::runLayers(const StepInputs& step) {
    embed(step);
    for (int i = 0; i < static_cast<int>(layers_.size()); i++) {
        const TraceSpan span(tracer(), "layer", "layer", i);
        context_.runLayer(step, layers_[i], buffers_);
        if (hooks_.dump) hooks_.dump->add(i, step, backend_, buffers_.x);
    }
}

void Decoder::runLayersMicrobatched(const StepInputs& step) {
    const int first = step.nTokens / 2;
    StepInputs steps[2] = {step, step};
    steps[0].nTokens = first;
    StepInputs& later = steps[1];
    later.nTokens -= first;
    later.positions += first;
    later.contextLengths += first;
    later.ropePositions += first;
    later.sequences += first;
    StepBuffers buffers[2] = {buffers_.rowsFrom(backend_, 0), buffers_.rowsFrom(backend_, first)};

    embed(step);
    struct Pending {
        const Layer* layer;
        Block block;
        int microbatch;
    };
    std::optional<Pending> pending;  // its all-reduce is on its way
    const auto addPending = [&] {
        const int m = pending->microbatch;
        context_.addResidual(steps[m], *pending->layer, pending->block, buffers[m]);
    };
    int number = 0;
    for (const Layer& layer : layers_) {
        const TraceSpan span(tracer(), "layer", "layer", number++);
        for (const Block block : {Block::Attention, Block::FeedForward})
            for (const int m : {0, 1}) {
                context_.computeBlock(steps[m], layer, block, buffers[m]);
                if (pending) comm_.waitAllReduce(steps[pending->microbatch], buffers[pending->microbatch].y);
                comm_.startAllReduce(steps[m], buffers[m].y);
                if (pending) addPending();
                pending = {&layer, block, m};
            }
    }
    comm_.waitAllReduce(steps[pending->microbatch], buffers[pending->microbatch].y);
    addPending();
}

size_t Decoder::kvBytesPerPosition(const Architecture& arch, const AttentionShape& shape, DType kvType) {
    const ModelConfig& c = arch.config;
    if (c.isLatent()) return shape.nHeads > 0 ? size_t{1} * c.nLayers * c.latentDim() * blockBytes(kvType) : 0;
    return size_t{2} * arch.config.nLayers * shape.nKvHeads * shape.headDim * blockBytes(kvType);
}

size_t Decoder::bufferBytes(const Architecture& arch, const RankShare& share, const DecoderLimits& limits) {
    const ModelConfig& c = arch.config;
    const int attention = c.isLatent() ? LatentCols(c, share.heads.size()).sum() + share.heads.size() * c.vHeadDim
                                       : (2 * share.heads.size() + 2 * share.kvHeads.size()) * c.headDim;
    const size_t values = size_t{3} * c.hiddenSize + attention + share.ffn.size() + share.shared.size();
    const size_t perToken = (sizeof(float) + 1) * values;  // f32, and about a byte for the Q80 forms
    const size_t perOutput = sizeof(float) * (static_cast<size_t>(c.hiddenSize) + share.vocabulary.size() +
                                              topLogitsCols(1) + topLogitsCols(kMaxTopLogits));
    const size_t rope = size_t{2} * limits.maxPositions * c.rotaryDim / 2 * sizeof(float);
    return limits.maxTokens * perToken + limits.maxOutputs * perOutput + rope;
}

}  // namespace dllama
