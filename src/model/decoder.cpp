#include "model/decoder.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/errors.hpp"

namespace dllama {

namespace {

MoeOp moeOpOf(const MoeWeights& w) {
    return {&w.router, w.experts.get(), w.shared.gate.get(), w.shared.up.get(), w.shared.down.get()};
}

}  // namespace

Decoder::Decoder(const Architecture& arch, const ShardPlan& plan, int rank, const RankWeights& weights,
                 Backend& backend, Communicator& comm, const DecoderLimits& limits)
    : arch_(arch),
      plan_(plan),
      rank_(rank),
      weights_(weights),
      backend_(backend),
      comm_(comm),
      limits_(limits),
      shape_(plan.attentionShape(rank)) {
    const ModelConfig& c = arch.config;
    const RankShare& share = plan.share(rank);

    const RopeTables tables = makeRopeTables(arch, limits.maxPositions);
    rope_.style = arch.ropeStyle;
    rope_.parts = arch.ropeParts;
    rope_.rotaryDim = tables.rotaryDim;
    rope_.cos = backend.uploadVector(tables.cos.data(), static_cast<int64_t>(tables.cos.size()));
    rope_.sin = backend.uploadVector(tables.sin.data(), static_cast<int64_t>(tables.sin.size()));

    for (int layer = 0; layer < c.nLayers; layer++)
        kv_.push_back(backend.allocateKvLayer(limits.kvType, limits.nKvBlocks, shape_.nKvHeads, c.headDim));
    kvBytes_ = kvBytesPerPosition(arch, shape_, limits.kvType) * limits.nKvBlocks * kKvBlockPositions;
    for (int r = 0; r < plan.nRanks(); r++) vocabularySizes_.push_back(plan.share(r).vocabulary.size());

    const int rows = limits.maxTokens;
    buffers_.x = backend.allocateActivations(rows, c.hiddenSize, false);
    buffers_.normed = backend.allocateActivations(rows, c.hiddenSize, true);
    buffers_.qkv = backend.allocateActivations(rows, shape_.qkvCols(), false);
    buffers_.context = backend.allocateActivations(rows, shape_.nHeads * c.headDim, true);
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

void Decoder::runLayers(const StepInputs& step) {
    backend_.embed(step, buffers_.x);
    backend_.addNorm(step, {.x = &buffers_.x, .next = &weights_.layers[0].attnNorm, .out = &buffers_.normed});
    for (size_t layer = 0; layer < weights_.layers.size(); layer++)
        for (const Block block : {Block::Attention, Block::FeedForward}) {
            compute(step, layer, block, buffers_);
            prefetchBehind(layer, block);
            comm_.allReduce(step, buffers_.y);
            addResidual(step, layer, block, buffers_);
        }
}

Decoder::Buffers Decoder::rowsFrom(int first) {
    const auto of = [&](const Activations& a) { return backend_.rowsFrom(a, first); };
    Buffers b{of(buffers_.x),      of(buffers_.normed), of(buffers_.qkv), of(buffers_.context),
              of(buffers_.hidden), of(buffers_.shared), of(buffers_.y),   {}};
    const Routing& routing = buffers_.routing;
    const ptrdiff_t entries = ptrdiff_t{first} * routing.topK;
    b.routing = {routing.topK, routing.experts + entries, routing.weights + entries, nullptr};
    return b;
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
    Buffers microbatches[2] = {rowsFrom(0), rowsFrom(first)};

    backend_.embed(step, buffers_.x);
    backend_.addNorm(step, {.x = &buffers_.x, .next = &weights_.layers[0].attnNorm, .out = &buffers_.normed});
    struct PendingAllReduce {
        size_t layer;
        Block block;
        int half;
    };
    std::optional<PendingAllReduce> sum;
    for (size_t layer = 0; layer < weights_.layers.size(); layer++)
        for (const Block block : {Block::Attention, Block::FeedForward})
            for (const int half : {0, 1}) {
                compute(steps[half], layer, block, microbatches[half]);
                if (sum) comm_.waitAllReduce(steps[sum->half], microbatches[sum->half].y);
                comm_.startAllReduce(steps[half], microbatches[half].y);
                if (sum) addResidual(steps[sum->half], sum->layer, sum->block, microbatches[sum->half]);
                sum = {layer, block, half};
            }
    comm_.waitAllReduce(steps[sum->half], microbatches[sum->half].y);
    addResidual(steps[sum->half], sum->layer, sum->block, microbatches[sum->half]);
}

void Decoder::compute(const StepInputs& step, size_t layer, Block block, Buffers& b) {
    const LayerWeights& w = weights_.layers[layer];
    if (block == Block::Attention) {
        if (!w.qkv) return backend_.clear(step, b.y);
        backend_.linear(step, b.normed, *w.qkv, b.qkv);
        backend_.attend(step, b.qkv, shape_, rope_, w.qNorm ? &*w.qNorm : nullptr, w.kNorm ? &*w.kNorm : nullptr,
                        kv_[layer], b.context);
        backend_.linear(step, b.context, *w.o, b.y);
    } else if (w.moe) {
        backend_.moe(step, b.normed, moeOpOf(*w.moe), b.shared, b.routing, b.y);
    } else if (w.ffn.up) {
        backend_.ffnUp(step, b.normed, w.ffn.gate.get(), *w.ffn.up, arch_.activation, b.hidden);
        backend_.linear(step, b.hidden, *w.ffn.down, b.y);
    } else {
        backend_.clear(step, b.y);
    }
}

void Decoder::addResidual(const StepInputs& step, size_t layer, Block block, Buffers& b) {
    const LayerWeights& w = weights_.layers[layer];
    const bool isLast = layer + 1 == weights_.layers.size();
    const std::optional<Norm>& post = block == Block::Attention ? w.postAttnNorm : w.postFfnNorm;
    const Norm& next = block == Block::Attention ? w.ffnNorm
                       : isLast                  ? weights_.finalNorm
                                                 : weights_.layers[layer + 1].attnNorm;
    backend_.addNorm(step, {.x = &b.x,
                            .y = &b.y,
                            .post = post ? &*post : nullptr,
                            .scaledBase = arch_.residualAlpha != 0.0f ? &b.normed : nullptr,
                            .alpha = arch_.residualAlpha,
                            .next = &next,
                            .out = &b.normed});
}

void Decoder::prefetchBehind(size_t layer, Block block) {
    const LayerWeights& w = weights_.layers[layer];
    if (block == Block::Attention) {
        const FfnWeights& ffn = w.moe ? w.moe->shared : w.ffn;
        if (ffn.up) backend_.prefetch(*ffn.up, ffn.gate.get());
        return;
    }
    const bool isLast = layer + 1 == weights_.layers.size();
    const Matrix* next = isLast ? weights_.head.get() : weights_.layers[layer + 1].qkv.get();
    if (next) backend_.prefetch(*next);
}

size_t Decoder::kvBytesPerPosition(const Architecture& arch, const AttentionShape& shape, DType kvType) {
    return size_t{2} * arch.config.nLayers * shape.nKvHeads * shape.headDim * blockBytes(kvType);
}

size_t Decoder::bufferBytes(const Architecture& arch, const RankShare& share, const DecoderLimits& limits) {
    const ModelConfig& c = arch.config;
    const size_t values = size_t{3} * c.hiddenSize + (2 * share.heads.size() + 2 * share.kvHeads.size()) * c.headDim +
                          share.ffn.size() + share.shared.size();
    const size_t perToken = (sizeof(float) + 1) * values;  // f32, and about a byte for the Q80 forms
    const size_t perOutput = sizeof(float) * (static_cast<size_t>(c.hiddenSize) + share.vocabulary.size() +
                                              topLogitsCols(1) + topLogitsCols(kMaxTopLogits));
    const size_t rope = size_t{2} * limits.maxPositions * c.rotaryDim / 2 * sizeof(float);
    return limits.maxTokens * perToken + limits.maxOutputs * perOutput + rope;
}

}  // namespace dllama
