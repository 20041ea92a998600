#include "model/layer.hpp"

namespace dllama {

/// context = this rank's heads of latent attention over what the hidden state gave: [query latent or queries | latent |
/// key].
void LayerContext::attendLatent(const StepInputs& step, const Layer& layer, StepBuffers& b) const {
    const LatentWeights& w = *layer.weights->latent;
    LatentOps& ops = *backend.latentOps();
    LatentBuffers& l = b.latent;
    ops.storeLatent(step, b.qkv, latent, rope, w.norm, *layer.kv);
    if (w.queryNorm) {
        ops.normRows(step, b.qkv, *w.queryNorm, l.queryLatent);
        backend.linear(step, l.queryLatent, *w.qB, l.q);
    }
    ops.splitQueries(step, w.queryNorm ? l.q : b.qkv, latent, rope, l.plain, l.queries);
    ops.linearPerHead(step, l.plain, *w.kB, latent.nHeads, l.queries);
    ops.attend(step, l.queries, latent, *layer.kv, l.mixed);
    ops.linearPerHead(step, l.mixed, *w.vB, latent.nHeads, b.context);
}

}  // namespace dllama
