#include "model/tracing.hpp"

#include "base/errors.hpp"

namespace dllama {

namespace {

constexpr const char* kOperation = "operation";
constexpr const char* kCollective = "collective";

Trace::Argument tokens(const StepInputs& step) {
    return {"tokens", step.nTokens};
}
Trace::Argument outputs(const StepInputs& step) {
    return {"outputs", step.nOutputs};
}
Trace::Argument rows(const Matrix& matrix) {
    return {"rows", matrix.rows};
}

}  // namespace

TraceSpan::TraceSpan(const Tracer* tracer, const char* category, const char* name, int number, Trace::Argument a,
                     Trace::Argument b)
    : tracer_(tracer), category_(category), a_(a), b_(b) {
    if (tracer == nullptr) return;
    name_ = number < 0 ? name : fmt::format("{} {}", name, number);
    tracer->backend.beginRange(name_.c_str());
    begin_ = Trace::Clock::now();
}

TraceSpan::~TraceSpan() {
    if (tracer_ == nullptr) return;
    tracer_->backend.endRange();
    try {
        tracer_->trace.add(tracer_->rank, Trace::Lane::Work, category_, name_, begin_, {a_, b_});
    } catch (const FormatError&) {
        // finish() meets the same fault and tells.
    }
}

/// A step that is replayed would call no operation here, so none is recorded: each run is of a shape of its own.
void TracingBackend::run(const std::string& shape, const std::function<void()>& body) {
    const TraceSpan span(&tracer_, "step", "layers and head");
    if (inner_.isHost()) return inner_.run(shape, body);
    inner_.run(fmt::format("{}/traced {}", shape, nRuns_++), body);
}

const StepInputs& TracingBackend::upload(const Batch& batch) {
    const TraceSpan span(&tracer_, kOperation, "upload");
    return inner_.upload(batch);
}

void TracingBackend::download(const Activations& from, int rows, float* dst) {
    const TraceSpan span(&tracer_, kOperation, "download", -1, {"rows", rows}, {"cols", from.cols});
    inner_.download(from, rows, dst);
}

void TracingBackend::uploadActivations(const float* src, int rows, Activations& to) {
    const TraceSpan span(&tracer_, kOperation, "uploadActivations", -1, {"rows", rows}, {"cols", to.cols});
    inner_.uploadActivations(src, rows, to);
}

void TracingBackend::clear(const StepInputs& step, Activations& x) {
    const TraceSpan span(&tracer_, kOperation, "clear", -1, tokens(step));
    inner_.clear(step, x);
}

void TracingBackend::embed(const StepInputs& step, Activations& x) {
    const TraceSpan span(&tracer_, kOperation, "embed", -1, tokens(step));
    inner_.embed(step, x);
}

void TracingBackend::addNorm(const StepInputs& step, const AddNorm& op) {
    const TraceSpan span(&tracer_, kOperation, "addNorm", -1, tokens(step));
    inner_.addNorm(step, op);
}

void TracingBackend::linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                            bool accumulate) {
    const TraceSpan span(&tracer_, kOperation, "linear", -1, tokens(step), rows(w));
    inner_.linear(step, in, w, out, accumulate);
}

void TracingBackend::ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up,
                           Activation act, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "ffnUp", -1, tokens(step), rows(up));
    inner_.ffnUp(step, in, gate, up, act, out);
}

void TracingBackend::ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                               const Norm* qNorm, const Norm* kNorm, KvLayer& kv) {
    const TraceSpan span(&tracer_, kOperation, "ropeStore", -1, tokens(step));
    inner_.ropeStore(step, qkv, shape, rope, qNorm, kNorm, kv);
}

void TracingBackend::attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                               const KvLayer& kv, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "attention", -1, tokens(step), {"context", step.maxContextLength});
    inner_.attention(step, qkv, shape, kv, out);
}

void TracingBackend::attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                            const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "attend", -1, tokens(step), {"context", step.maxContextLength});
    inner_.attend(step, qkv, shape, rope, qNorm, kNorm, kv, out);
}

void TracingBackend::route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) {
    const TraceSpan span(&tracer_, kOperation, "route", -1, tokens(step));
    inner_.route(step, in, router, routing);
}

void TracingBackend::experts(const StepInputs& step, const Activations& in, const Routing& routing,
                             const ExpertSet& experts, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "experts", -1, tokens(step));
    inner_.experts(step, in, routing, experts, out);
}

void TracingBackend::moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden,
                         Routing& routing, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "moe", -1, tokens(step));
    inner_.moe(step, in, m, hidden, routing, out);
}

void TracingBackend::gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "gatherOutputs", -1, outputs(step));
    inner_.gatherOutputs(step, x, out);
}

void TracingBackend::head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) {
    const TraceSpan span(&tracer_, kOperation, "head", -1, outputs(step), rows(w));
    inner_.head(step, in, w, logits);
}

void TracingBackend::topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k,
                               Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "topLogits", -1, outputs(step), {"k", k});
    inner_.topLogits(step, logits, firstToken, k, out);
}

void TracingLatentOps::normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "normRows", -1, tokens(step));
    inner_.normRows(step, in, norm, out);
}

void TracingLatentOps::storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape,
                                   const Rope& rope, const Norm& norm, KvLayer& kv) {
    const TraceSpan span(&tracer_, kOperation, "storeLatent", -1, tokens(step));
    inner_.storeLatent(step, in, shape, rope, norm, kv);
}

void TracingLatentOps::splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape,
                                    const Rope& rope, Activations& plain, Activations& queries) {
    const TraceSpan span(&tracer_, kOperation, "splitQueries", -1, tokens(step));
    inner_.splitQueries(step, q, shape, rope, plain, queries);
}

void TracingLatentOps::linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                                     Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "linearPerHead", -1, tokens(step), rows(w));
    inner_.linearPerHead(step, in, w, nHeads, out);
}

void TracingLatentOps::attend(const StepInputs& step, const Activations& queries, const LatentShape& shape,
                              const KvLayer& kv, Activations& out) {
    const TraceSpan span(&tracer_, kOperation, "latent attend", -1, tokens(step), {"context", step.maxContextLength});
    inner_.attend(step, queries, shape, kv, out);
}

void TracingCommunicator::allReduce(const StepInputs& step, Activations& x) {
    const TraceSpan span(&tracer_, kCollective, "allReduce", -1, tokens(step), {"cols", x.cols});
    inner_.allReduce(step, x);
}

void TracingCommunicator::startAllReduce(const StepInputs& step, Activations& x) {
    started_ = Trace::Clock::now();
    inner_.startAllReduce(step, x);
}

void TracingCommunicator::waitAllReduce(const StepInputs& step, Activations& x) {
    {
        const TraceSpan span(&tracer_, kCollective, "waitAllReduce", -1, tokens(step));
        inner_.waitAllReduce(step, x);
    }
    tracer_.trace.add(tracer_.rank, Trace::Lane::Collectives, kCollective, "allReduce", started_,
                      {tokens(step), {"cols", x.cols}});
}

void TracingCommunicator::gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank,
                                     float* all) {
    const TraceSpan span(&tracer_, kCollective, "gatherRows", -1, {"rows", nRows}, {"cols", colsOfRank[rank()]});
    inner_.gatherRows(mine, nRows, colsOfRank, all);
}

}  // namespace dllama
