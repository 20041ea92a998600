#include "gpu/attention-ops.hpp"

#include <algorithm>
#include <bit>

#include "gpu/kernel-choice.hpp"

namespace dllama::gpu {

namespace {

RopeStoreParams ropeParams(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                           const Rope& rope, const Norm* qNorm, const Norm* kNorm, const KvLayer& kv) {
    RopeStoreParams p{};
    p.nTokens = step.nTokens;
    p.maxBlocks = step.maxBlocks;
    p.qkv = qkv.f32;
    p.qkvCols = qkv.cols;
    p.nHeads = shape.nHeads;
    p.nKvHeads = shape.nKvHeads;
    p.headDim = shape.headDim;
    p.interleaved = rope.style == Rope::Style::Interleaved;
    p.parts = rope.parts;
    p.rotaryDim = rope.rotaryDim;
    p.cos = rope.cos.data;
    p.sin = rope.sin.data;
    p.hasQNorm = qNorm != nullptr;
    p.hasKNorm = kNorm != nullptr;
    if (qNorm) p.qNorm = normOf(*qNorm);
    if (kNorm) p.kNorm = normOf(*kNorm);
    p.k = kv.k;
    p.v = kv.v;
    p.f32Cache = kv.dtype == DType::F32;
    p.positions = step.positions;
    p.ropePositions = step.ropePositions;
    p.sequences = step.sequences;
    p.blockTables = step.blockTables;
    return p;
}

AttentionParams attentionParams(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                                const KvLayer& kv, const Activations& out) {
    AttentionParams p{};
    p.nTokens = step.nTokens;
    p.nSequences = step.nSequences;
    p.maxBlocks = step.maxBlocks;
    p.maxContextLength = static_cast<int>(std::bit_ceil(static_cast<unsigned>(step.maxContextLength)));
    p.qkv = qkv.f32;
    p.qkvCols = qkv.cols;
    p.nHeads = shape.nHeads;
    p.nKvHeads = shape.nKvHeads;
    p.headDim = shape.headDim;
    p.group = shape.group;
    p.headOffset = shape.headOffset;
    p.k = kv.k;
    p.v = kv.v;
    p.f32Cache = kv.dtype == DType::F32;
    p.contextLengths = step.contextLengths;
    p.sequences = step.sequences;
    p.blockTables = step.blockTables;
    p.out = rowsOf(out);
    p.nSplits = 1;
    return p;
}

}  // namespace

bool ofDifferentSequences(const Batch& batch) {
    return std::adjacent_find(batch.sequences.begin(), batch.sequences.end()) == batch.sequences.end();
}

void AttentionOps::ropeStore(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                             const Rope& rope, const Norm* qNorm, const Norm* kNorm, const KvLayer& kv) {
    launchRopeStore(ropeParams(step, qkv, shape, rope, qNorm, kNorm, kv), core_.stream);
}

void AttentionOps::attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                             const KvLayer& kv, const Activations& out) {
    const AttentionParams p = attentionParams(step, qkv, shape, kv, out);
    if (step.nTokens >= kPrefillTokensOfSequence * step.nSequences && canAttentionPrefill(p, core_.stream))
        return launchAttentionPrefill(p, core_.stream);
    if (!canAttentionDecode(p, core_.stream)) return launchAttentionPlain(p, core_.stream);
    launchDecode(p);
}

bool AttentionOps::attend(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const Rope& rope,
                          const Norm* qNorm, const Norm* kNorm, const KvLayer& kv, const Activations& out) {
    AttentionParams p = attentionParams(step, qkv, shape, kv, out);
    p.turns = true;
    p.rope = ropeParams(step, qkv, shape, rope, qNorm, kNorm, kv);
    if (!ofDifferentSequences(*step.host) || !canAttentionDecode(p, core_.stream)) return false;
    launchDecode(p);
    return true;
}

void AttentionOps::launchDecode(AttentionParams p) {
    p.nSplits = attentionDecodeSplits(p, core_.stream);
    const size_t results = static_cast<size_t>(p.nTokens) * p.nHeads * p.nSplits;
    p.partial = core_.scratch.get<float>(Scratch::Partial, p.nSplits > 1 ? results * p.headDim : 0);
    p.partialStats = core_.scratch.get<float>(Scratch::PartialStats, p.nSplits > 1 ? results * 2 : 0);
    launchAttentionDecode(p, core_.stream);
}

}  // namespace dllama::gpu
