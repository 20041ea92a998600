#include "backend/reference-latent.hpp"

#include <algorithm>

#include "backend/reference-parts.hpp"

namespace dllama {

using namespace reference;

namespace {

float* rowOf(const Activations& a, int token) {
    return a.f32 + static_cast<size_t>(token) * a.cols;
}

}  // namespace

void ReferenceLatentOps::normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) {
    for (int t = 0; t < step.nTokens; t++) normalize(norm, rowOf(in, t), rowOf(out, t), out.cols);
}

void ReferenceLatentOps::storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape,
                                     const Rope& rope, const Norm& norm, KvLayer& kv) {
    std::vector<float> row(shape.rowDim());
    for (int t = 0; t < step.nTokens; t++) {
        const float* from = rowOf(in, t) + in.cols - shape.rowDim();
        normalize(norm, from, row.data(), shape.latentDim);
        std::copy_n(from + shape.latentDim, shape.ropeDim, row.data() + shape.latentDim);
        rotate(step, rope, t, row.data() + shape.latentDim);
        const size_t at = kvIndex(step, kv, step.sequences[t], step.positions[t], 0);
        for (int i = 0; i < shape.rowDim(); i++) storeKv(kv, kv.k, at + i, row[i]);
    }
}

void ReferenceLatentOps::splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape,
                                      const Rope& rope, Activations& plain, Activations& queries) {
    for (int t = 0; t < step.nTokens; t++) {
        for (int h = 0; h < shape.nHeads; h++) {
            const float* head = rowOf(q, t) + h * shape.queryDim();
            std::copy_n(head, shape.plainDim, rowOf(plain, t) + h * shape.plainDim);
            float* turned = rowOf(queries, t) + h * shape.rowDim() + shape.latentDim;
            std::copy_n(head + shape.plainDim, shape.ropeDim, turned);
            rotate(step, rope, t, turned);
        }
    }
}

void ReferenceLatentOps::linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                                       Activations& out) {
    const int64_t n = w.rows / nHeads;
    PlainMatrix head;
    head.dtype = w.dtype;
    head.rows = n;
    head.cols = w.cols;
    for (int h = 0; h < nHeads; h++) {
        const float* values = plain(w).values.data() + h * n * w.cols;
        head.values.assign(values, values + n * w.cols);
        for (int t = 0; t < step.nTokens; t++) {
            const std::vector<float> y = multiply(head, rowOf(in, t) + h * w.cols);
            std::copy(y.begin(), y.end(), rowOf(out, t) + static_cast<size_t>(h) * (out.cols / nHeads));
        }
    }
}

void ReferenceLatentOps::attend(const StepInputs& step, const Activations& queries, const LatentShape& shape,
                                const KvLayer& kv, Activations& out) {
    for (int t = 0; t < step.nTokens; t++) {
        const int n = step.contextLengths[t];
        const auto row = [&](int p) { return kvIndex(step, kv, step.sequences[t], p, 0); };
        for (int h = 0; h < shape.nHeads; h++) {
            const float* q = rowOf(queries, t) + h * shape.rowDim();
            std::vector<double> scores(n);
            for (int p = 0; p < n; p++) {
                for (int i = 0; i < shape.rowDim(); i++)
                    scores[p] += static_cast<double>(q[i]) * loadKv(kv, kv.k, row(p) + i);
                scores[p] /= std::sqrt(static_cast<double>(shape.queryDim()));
            }
            const double largest = *std::max_element(scores.begin(), scores.end());
            double sum = 0.0;
            for (double& score : scores) sum += score = std::exp(score - largest);
            std::vector<double> mixed(shape.latentDim);
            for (int p = 0; p < n; p++)
                for (int i = 0; i < shape.latentDim; i++) mixed[i] += scores[p] / sum * loadKv(kv, kv.k, row(p) + i);
            std::copy(mixed.begin(), mixed.end(), rowOf(out, t) + h * shape.latentDim);
        }
    }
}

}  // namespace dllama
