#include "model/decoder.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/errors.hpp"

namespace dllama {

namespace {

Mixture mixtureOf(const MoeWeights& w) {
    return {&w.router, w.experts.get(), w.shared.gate.get(), w.shared.up.get(), w.shared.down.get()};
}

}  // namespace

Decoder::Decoder(const Architecture& arch, const ShardPlan& plan, int rank, const Weights& weights, Backend& backend,
                 Communicator& comm, const DecoderLimits& limits)
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
    x_ = backend.allocateActivations(rows, c.hiddenSize, false);
    normed_ = backend.allocateActivations(rows, c.hiddenSize, true);
    qkv_ = backend.allocateActivations(rows, shape_.qkvCols(), false);
    context_ = backend.allocateActivations(rows, shape_.nHeads * c.headDim, true);
    hidden_ = backend.allocateActivations(rows, share.ffn.size(), true);
    shared_ = backend.allocateActivations(rows, share.shared.size(), true);
    y_ = backend.allocateActivations(rows, c.hiddenSize, false);
    if (c.isMixture()) routing_ = backend.allocateRouting(rows, c.nExpertsPerToken);
    last_ = backend.allocateActivations(limits.maxOutputs, c.hiddenSize, true);
    logits_ = backend.allocateActivations(limits.maxOutputs, share.vocabulary.size(), false);
    best_[0] = backend.allocateActivations(limits.maxOutputs, bestLogitsCols(1), false);
    best_[1] = backend.allocateActivations(limits.maxOutputs, bestLogitsCols(kMaxBestLogits), false);
}

void Decoder::forward(const Batch& batch, std::vector<float>& best) {
    DLLAMA_CHECK(batch.nTokens > 0 && batch.nTokens <= limits_.maxTokens && batch.nOutputs() <= limits_.maxOutputs);
    DLLAMA_CHECK(batch.nBest == 0 || batch.nBest == 1 || batch.nBest == kMaxBestLogits);
    const StepInputs& step = backend_.upload(batch);
    const int nBest = batch.nBest;
    Activations& bestOut = best_[nBest > 1 ? 1 : 0];
    nOutputs_ = step.nOutputs;

    // Attention kernels may size their work by the context's bucket, so it is part of the shape.
    const std::string shape = fmt::format("{}/{}/{}/{}/{}", step.nTokens, step.nSequences, nOutputs_, nBest,
                                          std::bit_ceil(static_cast<unsigned>(step.maxVisible)));
    backend_.run(shape, [&] {
        backend_.embed(step, x_);
        backend_.addNorm(step, {.x = &x_, .next = &weights_.layers[0].attnNorm, .out = &normed_});
        for (size_t i = 0; i < weights_.layers.size(); i++) {
            const bool lastLayer = i + 1 == weights_.layers.size();
            attentionBlock(step, weights_.layers[i], kv_[i]);
            feedForwardBlock(step, weights_.layers[i],
                             lastLayer ? &weights_.finalNorm : &weights_.layers[i + 1].attnNorm,
                             lastLayer ? weights_.head.get() : weights_.layers[i + 1].qkv.get());
        }
        if (nOutputs_ == 0) return;
        if (weights_.head) {
            backend_.gatherOutputs(step, normed_, last_);
            backend_.head(step, last_, *weights_.head, logits_);
        }
        if (nBest > 0) backend_.bestLogits(step, logits_, plan_.share(rank_).vocabulary.begin, nBest, bestOut);
    });

    best.clear();
    if (nOutputs_ == 0 || nBest == 0) return;
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

/// x += attention(normed); normed = ffnNorm(x)
void Decoder::attentionBlock(const StepInputs& step, const LayerWeights& w, KvLayer& kv) {
    if (w.qkv) {
        backend_.linear(step, normed_, *w.qkv, qkv_);
        backend_.attend(step, qkv_, shape_, rope_, w.qNorm ? &*w.qNorm : nullptr, w.kNorm ? &*w.kNorm : nullptr, kv,
                        context_);
        backend_.linear(step, context_, *w.o, y_);
    } else {
        backend_.clear(step, y_);
    }
    prefetchFfn(w);
    comm_.allReduceSum(step, y_);
    backend_.addNorm(step, {.x = &x_,
                            .y = &y_,
                            .post = w.postAttnNorm ? &*w.postAttnNorm : nullptr,
                            .scaledBase = arch_.residualAlpha != 0.0f ? &normed_ : nullptr,
                            .alpha = arch_.residualAlpha,
                            .next = &w.ffnNorm,
                            .out = &normed_});
}

/// What the feed-forward part reads whichever experts are chosen.
void Decoder::prefetchFfn(const LayerWeights& w) {
    const FfnWeights& ffn = w.moe ? w.moe->shared : w.ffn;
    if (ffn.up) backend_.prefetch(*ffn.up, ffn.gate.get());
}

/// x += ffn(normed) or x += mixture(normed); normed = the next block's norm of x
void Decoder::feedForwardBlock(const StepInputs& step, const LayerWeights& w, const Norm* nextNorm,
                               const Matrix* nextMatrix) {
    if (w.moe)
        backend_.mixture(step, normed_, mixtureOf(*w.moe), shared_, routing_, y_);
    else if (w.ffn.up)
        denseFfn(step, w.ffn, hidden_, false);
    else
        backend_.clear(step, y_);
    if (nextMatrix) backend_.prefetch(*nextMatrix);
    comm_.allReduceSum(step, y_);
    backend_.addNorm(step, {.x = &x_,
                            .y = &y_,
                            .post = w.postFfnNorm ? &*w.postFfnNorm : nullptr,
                            .scaledBase = arch_.residualAlpha != 0.0f ? &normed_ : nullptr,
                            .alpha = arch_.residualAlpha,
                            .next = nextNorm,
                            .out = &normed_});
}

/// y = down(act(gate normed) * up normed)
void Decoder::denseFfn(const StepInputs& step, const FfnWeights& w, Activations& hidden, bool accumulate) {
    backend_.ffnUp(step, normed_, w.gate.get(), *w.up, arch_.activation, hidden);
    backend_.linear(step, hidden, *w.down, y_, accumulate);
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
                                              bestLogitsCols(1) + bestLogitsCols(kMaxBestLogits));
    const size_t rope = size_t{2} * limits.maxPositions * c.rotaryDim / 2 * sizeof(float);
    return limits.maxTokens * perToken + limits.maxOutputs * perOutput + rope;
}

}  // namespace dllama
