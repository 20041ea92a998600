#include "gpu/linear-ops.hpp"

#include <algorithm>

#include "base/errors.hpp"
#include "gpu/kernel-choice.hpp"

namespace dllama::gpu {

bool LinearOps::takesMatmul(DType dtype) const {
    return core_.options.halfProducts && canMatmul(dtype, core_.stream);
}

bool LinearOps::usesMatmul(int rows, const Weights& w, bool gated) const {
    return rows > kMaxFewRows && takesMatmul(w.dtype) && fillsMatmul(w.rows, gated, core_.stream.nSms);
}

bool LinearOps::usesLibrary(int rows) const {
    return rows > 1 && rows >= core_.options.libraryRows && core_.options.halfProducts && !core_.graphs.recording();
}

/// Nothing has to be widened here: it pays wherever steps are not recorded.
bool LinearOps::usesLibraryForFloats(int rows, DType dtype) const {
    return CublasGemm::takesFloats(dtype, core_.stream) && core_.options.halfProducts && !core_.graphs.recording() &&
           (rows > kMaxGraphTokens || usesLibrary(rows));
}

CublasGemm& LinearOps::library() {
    if (!library_) library_ = std::make_unique<CublasGemm>(core_.stream);
    return *library_;
}

void LinearOps::stage(int rows, const QuantRows& q, MatmulParams& p) {
    auto* staged = core_.scratch.get<__half>(Scratch::Staged, static_cast<size_t>(rows) * q.groups * kGroup);
    auto* rowScale = core_.scratch.get<float>(Scratch::RowScale, rows);
    launchStageRows({rows, q, staged, rowScale}, core_.stream);
    p.a = staged;
    p.rowScale = rowScale;
}

void LinearOps::multiply(int rows, const Activations& in, const Weights& w, float* out, int outCols, bool accumulate) {
    const LinearParams p{rows, rowsOf(in), w, out, outCols, accumulate};
    if (usesLibraryForFloats(rows, w.dtype)) return library().multiplyFloats(rows, in.f32, w, out, outCols, accumulate);
    if (!isQuantized(w.dtype)) return launchLinearFloat(p, core_.stream);
    DLLAMA_CHECK(in.q80 != nullptr);
    if (rows == 1) return launchLinear(p, core_.stream);
    if (usesLibrary(rows)) {
        library().stage(rows, p.in.q);
        return library().multiply(rows, w, out, outCols, accumulate);
    }
    if (usesMatmul(rows, w, false)) {
        MatmulParams m{};
        m.m = rows;
        m.w = w;
        m.out = out;
        m.outCols = outCols;
        m.accumulate = accumulate;
        stage(rows, p.in.q, m);
        return launchMatmul(m, core_.stream);
    }
    const bool isLong = rows >= kFirstRowsOfLong && rows <= kLastRowsOfLong && w.groups >= kLongGroups;
    if (isLong && multiplyRows(rows, {0, p.in.q, w, {}, {}, out, outCols, accumulate, {}})) return;
    multiplyFew(rows, p);
}

bool LinearOps::multiplyRows(int rows, LinearRowsParams p) {
    p.m = std::min(rows, kMaxFewRows);
    if (!canLinearRows(p, core_.stream)) return false;
    for (int row = 0; row < rows; row += kMaxFewRows) {
        p.m = std::min(kMaxFewRows, rows - row);
        launchLinearRows(p, core_.stream);
        p.in = p.in.from(kMaxFewRows);
        p.q = p.q.from(kMaxFewRows);
        p.out += static_cast<size_t>(kMaxFewRows) * p.outCols;
    }
    return true;
}

void LinearOps::multiplyFew(int rows, LinearParams p) {
    for (int row = 0; row < rows; row += kMaxFewRows) {
        p.m = std::min(kMaxFewRows, rows - row);
        launchLinearFew(p, core_.stream);
        p.in.q = p.in.q.from(kMaxFewRows);
        p.out += static_cast<size_t>(kMaxFewRows) * p.outCols;
    }
}

/// False where no kernel makes gate, up and activation in one.
bool LinearOps::ffnUpInOne(int rows, const Activations& in, const Weights& gate, const Weights& up, Activation act,
                           const Rows& to) {
    if (!isQuantized(up.dtype) || gate.dtype != up.dtype) return false;
    if (rows == 1) {
        launchFfnUp({rowsOf(in), gate, up, act, to}, core_.stream);
        return true;
    }
    if (usesLibrary(rows)) return false;
    if (!usesMatmul(rows, up, true))
        return rows >= kRowsOfFfnUp &&
               multiplyRows(rows, {0, rowsOf(in).q, gate, up, act, to.f32, to.cols, false, to.q});
    MatmulParams p{};
    p.m = rows;
    p.w = gate;
    p.up = up;
    p.act = act;
    p.out = to.f32;
    p.outCols = to.cols;
    p.q = to.q;
    stage(rows, rowsOf(in).q, p);
    launchMatmul(p, core_.stream);
    return true;
}

void LinearOps::ffnUp(int rows, const Activations& in, const Weights* gate, const Weights& up, Activation act,
                      Activations& out) {
    const Rows to = rowsOf(out);
    if (gate && ffnUpInOne(rows, in, *gate, up, act, to)) return;
    const size_t size = static_cast<size_t>(rows) * out.cols;
    auto* gateOut = gate ? core_.scratch.get<float>(Scratch::Gate, size) : nullptr;
    auto* upOut = core_.scratch.get<float>(Scratch::Up, size);
    if (gate && isQuantized(up.dtype) && gate->dtype == up.dtype && usesLibrary(rows)) {
        library().stage(rows, rowsOf(in).q);
        library().multiply(rows, *gate, gateOut, out.cols, false);
        library().multiply(rows, up, upOut, out.cols, false);
    } else {
        if (gate) multiply(rows, in, *gate, gateOut, out.cols, false);
        multiply(rows, in, up, upOut, out.cols, false);
    }
    launchGlu({rows, out.cols, gateOut, upOut, act, to}, core_.stream);
}

}  // namespace dllama::gpu
