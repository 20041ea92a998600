#include "model/layer.hpp"

namespace dllama {

namespace {

const Norm* orNull(const std::optional<Norm>& norm) {
    return norm ? &*norm : nullptr;
}

}  // namespace

StepBuffers StepBuffers::rowsFrom(const Backend& backend, int first) const {
    const auto of = [&](const Activations& a) { return backend.rowsFrom(a, first); };
    const LatentBuffers& l = latent;
    StepBuffers b{of(x),       of(normed), of(qkv),
                  of(context), of(hidden), of(shared),
                  of(y),       {},         {of(l.queryLatent), of(l.q), of(l.plain), of(l.queries), of(l.mixed)}};
    const ptrdiff_t entries = ptrdiff_t{first} * routing.topK;
    b.routing = {routing.topK, routing.experts + entries, routing.weights + entries, nullptr};
    return b;
}

void LayerContext::runLayer(const StepInputs& step, const Layer& layer, StepBuffers& b) const {
    for (const Block block : {Block::Attention, Block::FeedForward}) {
        computeBlock(step, layer, block, b);
        prefetchBehind(layer, block);
        comm.allReduce(step, b.y);
        addResidual(step, layer, block, b);
    }
}

void LayerContext::computeBlock(const StepInputs& step, const Layer& layer, Block block, StepBuffers& b) const {
    const LayerWeights& w = *layer.weights;
    if (block == Block::Attention) {
        if (!w.qkv) return backend.clear(step, b.y);
        backend.linear(step, b.normed, *w.qkv, b.qkv);
        if (w.latent)
            attendLatent(step, layer, b);
        else
            attendGrouped(step, layer, b);
        backend.linear(step, b.context, *w.o, b.y);
    } else if (w.moe) {
        const FfnWeights& shared = w.moe->shared;
        const MoeOp op{&w.moe->router, w.moe->experts.get(), shared.gate.get(), shared.up.get(), shared.down.get()};
        backend.moe(step, b.normed, op, b.shared, b.routing, b.y);
    } else if (w.ffn.up) {
        backend.ffnUp(step, b.normed, w.ffn.gate.get(), *w.ffn.up, arch.activation, b.hidden);
        backend.linear(step, b.hidden, *w.ffn.down, b.y);
    } else {
        backend.clear(step, b.y);
    }
}

void LayerContext::attendGrouped(const StepInputs& step, const Layer& layer, StepBuffers& b) const {
    const LayerWeights& w = *layer.weights;
    backend.attend(step, b.qkv, shape, rope, orNull(w.qNorm), orNull(w.kNorm), *layer.kv, b.context);
}

void LayerContext::addResidual(const StepInputs& step, const Layer& layer, Block block, StepBuffers& b) const {
    const LayerWeights& w = *layer.weights;
    const bool isAttention = block == Block::Attention;
    backend.addNorm(step, {.x = &b.x,
                           .y = &b.y,
                           .post = orNull(isAttention ? w.postAttnNorm : w.postFfnNorm),
                           .scaledBase = arch.residualAlpha != 0.0f ? &b.normed : nullptr,
                           .alpha = arch.residualAlpha,
                           .next = isAttention ? &w.ffnNorm : layer.nextNorm,
                           .out = &b.normed});
}

/// Names what is read behind the block whichever experts are chosen.
void LayerContext::prefetchBehind(const Layer& layer, Block block) const {
    if (block == Block::Attention) {
        const FfnWeights& ffn = layer.weights->moe ? layer.weights->moe->shared : layer.weights->ffn;
        if (ffn.up) backend.prefetch(*ffn.up, ffn.gate.get());
    } else if (layer.nextMatrix) {
        backend.prefetch(*layer.nextMatrix);
    }
}

}  // namespace dllama
