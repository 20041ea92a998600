#include "gpu/moe-ops.hpp"

#include <algorithm>

#include "gpu/kernel-choice.hpp"

namespace dllama::gpu {

void MoeOps::route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) {
    RouteParams p{};
    p.nTokens = step.nTokens;
    p.in = rowsOf(in);
    p.sigmoid = router.score == Router::Score::Sigmoid;
    p.normalize = router.normalize;
    p.nExperts = router.nExperts;
    p.topK = router.topK;
    p.nGroups = router.nGroups;
    p.topGroups = router.topGroups;
    p.scale = router.scale;
    p.weight = router.weight.data;
    p.bias = router.bias.data;
    p.logits = core_.scratch.get<float>(Scratch::Logits, size_t(step.nTokens) * router.nExperts);
    p.arrived = core_.scratch.get<int32_t>(Scratch::Arrived, step.nTokens);
    p.experts = routing.experts;
    p.weights = routing.weights;
    launchRoute(p, core_.stream);
}

void MoeOps::experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                     Activations& out) {
    if (w.gate.rows == 0) return;  // all experts are other ranks'
    if (step.nTokens >= kRowExpertTokens && rowExperts(step, in, routing, w, out)) return;
    if (step.nTokens > kFewExpertTokens && linear_.takesMatmul(w.gate.dtype))
        groupedExperts(step, in, routing, w, out);
    else
        fewExperts(step, in, routing, w, {}, out);
}

bool MoeOps::moe(const StepInputs& step, const Activations& in, const MoeOp& m, const Activations& hidden,
                 Routing& routing, Activations& out) {
    const ExpertWeights none, &w = m.experts ? static_cast<const CudaExperts&>(*m.experts).weights : none;
    const auto alike = [](const Matrix& shared, const Weights& routed) {
        const Weights& s = weightsOf(shared);
        return s.dtype == routed.dtype && !s.bias;
    };
    if (step.nTokens >= kRowExpertTokens || w.gate.rows == 0 || !isQuantized(w.gate.dtype) || !m.gate ||
        !alike(*m.gate, w.gate) || !alike(*m.up, w.up) || !alike(*m.down, w.down))
        return false;
    route(step, in, *m.router, routing);
    fewExperts(step, in, routing, w, {weightsOf(*m.gate), weightsOf(*m.up), weightsOf(*m.down), rowsOf(hidden).q}, out);
    return true;
}

ExpertsDecodeParams MoeOps::decodeParams(const StepInputs& step, const Activations& in, const Routing& routing,
                                         const ExpertWeights& w, Activations& out) {
    const int pairs = step.nTokens * routing.topK, ffn = w.gate.rows;
    ExpertsDecodeParams p{};
    p.nTokens = step.nTokens;
    p.topK = routing.topK;
    p.in = rowsOf(in);
    p.w = w;
    p.experts = routing.experts;
    p.weights = routing.weights;
    p.hidden.cols = ffn;
    if (isQuantized(w.gate.dtype)) {
        p.hidden.q.groups = w.down.groups;
        p.hidden.q.values = core_.scratch.get<int8_t>(Scratch::HiddenQ80, size_t(pairs) * w.down.groups * kGroup);
        p.hidden.q.scales = core_.scratch.get<float>(Scratch::HiddenScales, size_t(pairs) * w.down.groups * 4);
    } else {
        p.hidden.f32 = core_.scratch.get<float>(Scratch::Hidden, size_t(pairs) * ffn);
    }
    p.out = out.f32;
    p.outCols = out.cols;
    return p;
}

void MoeOps::fewExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                        const SharedExpert& shared, Activations& out) {
    ExpertsDecodeParams p = decodeParams(step, in, routing, w, out);
    p.shared = shared;
    launchExpertsDecode(p, core_.stream);
}

bool MoeOps::rowExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                        Activations& out) {
    if (!isQuantized(w.gate.dtype)) return false;
    ExpertsDecodeParams p = decodeParams(step, in, routing, w, out);
    if (!canExpertsRows(p, core_.stream)) return false;
    p.pairOut = core_.scratch.get<float>(Scratch::PairOut, size_t(step.nTokens) * routing.topK * w.down.rows);
    launchExpertsRows(p, core_.stream);
    return true;
}

void MoeOps::groupedExperts(const StepInputs& step, const Activations& in, const Routing& routing,
                            const ExpertWeights& w, Activations& out) {
    const int pairs = step.nTokens * routing.topK, maxTiles = pairs / kExpertTileRows + w.nExperts;
    // Tiles, their number, then two arrays of the pairs.
    auto* tiles = core_.scratch.get<ExpertTile>(Scratch::Sorting, maxTiles + 1 + (2 * pairs + 3) / 4);
    auto* nTiles = reinterpret_cast<int32_t*>(tiles + maxTiles);
    int32_t* rowToken = nTiles + 4;
    int32_t* rowOf = rowToken + pairs;
    launchSortExperts(
        {step.nTokens, routing.topK, routing.experts, w.slots, w.nExperts, rowToken, rowOf, tiles, nTiles},
        core_.stream);
    MatmulParams p{};
    p.m = pairs;
    p.tiles = tiles;
    p.nTiles = nTiles;
    p.maxTiles = maxTiles;

    p.w = w.gate;
    p.up = w.up;
    p.rowIndex = rowToken;
    p.q.groups = w.down.groups;
    p.q.values = core_.scratch.get<int8_t>(Scratch::HiddenQ80, size_t(pairs) * w.down.groups * kGroup);
    p.q.scales = core_.scratch.get<float>(Scratch::HiddenScales, size_t(pairs) * w.down.groups * 4);
    for (int m = 0; m < 2; m++) {
        p.dataStride[m] = w.dataStride[m];
        p.scaleStride[m] = w.scaleStride[m];
    }
    // Room for the second product as well, so that the first one's scratch stays where it is.
    core_.scratch.get<__half>(Scratch::Staged, size_t(pairs) * std::max(w.down.groups, w.gate.groups) * kGroup);
    core_.scratch.get<float>(Scratch::RowScale, pairs);
    linear_.stage(step.nTokens, rowsOf(in).q, p);
    launchMatmul(p, core_.stream);

    const QuantRows hidden = p.q;
    p.w = w.down;
    p.up = {};
    p.q = {};
    p.rowIndex = nullptr;
    p.dataStride[0] = w.dataStride[2];
    p.scaleStride[0] = w.scaleStride[2];
    p.out = core_.scratch.get<float>(Scratch::ExpertOut, size_t(pairs) * w.down.rows);
    p.outCols = w.down.rows;
    linear_.stage(pairs, hidden, p);
    launchMatmul(p, core_.stream);
    launchMixExperts({step.nTokens, routing.topK, w.down.rows, rowOf, routing.weights, p.out, out.f32}, core_.stream);
}

}  // namespace dllama::gpu
