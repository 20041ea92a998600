#include "cpu/latent.hpp"

#include <algorithm>

#include "base/errors.hpp"
#include "cpu/norms.hpp"

namespace dllama {

namespace {

float* rowOf(const Activations& a, int64_t token) {
    return a.f32 + token * a.cols;
}

}  // namespace

void CpuLatentOps::normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) {
    work_.forEach(step.nTokens, [&](int64_t t, int) {
        normalize(norm, rowOf(in, t), rowOf(out, t), out.cols);
        if (out.q80) work_.kernels.quantize(rowOf(out, t), out.cols, inputBlocks(out) + t * out.cols / 32);
    });
}

void CpuLatentOps::storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape,
                               const Rope& rope, const Norm& norm, KvLayer& kv) {
    const int d = shape.rowDim();
    DLLAMA_CHECK(kv.headDim == d && kv.nKvHeads == 1);
    auto* rows = rows_.get<float>(static_cast<size_t>(step.nTokens) * d);
    work_.forEach(step.nTokens, [&](int64_t t, int) {
        const float* from = rowOf(in, t) + in.cols - d;
        float* row = rows + t * d;
        normalize(norm, from, row, shape.latentDim);
        std::copy_n(from + shape.latentDim, shape.ropeDim, row + shape.latentDim);
        rotate(step, rope, static_cast<int>(t), row + shape.latentDim);
        const int position = step.positions[t];
        const size_t block =
            step.blockTables[static_cast<size_t>(step.sequences[t]) * step.maxBlocks + position / kKvBlockPositions];
        storeRow(work_, kv, kv.k, (block * kKvBlockPositions + position % kKvBlockPositions) * d, row);
    });
}

void CpuLatentOps::splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape,
                                const Rope& rope, Activations& plain, Activations& queries) {
    work_.forEach(step.nTokens, [&](int64_t t, int) {
        for (int h = 0; h < shape.nHeads; h++) {
            const float* head = rowOf(q, t) + h * shape.queryDim();
            std::copy_n(head, shape.plainDim, rowOf(plain, t) + h * shape.plainDim);
            float* turned = rowOf(queries, t) + h * shape.rowDim() + shape.latentDim;
            std::copy_n(head + shape.plainDim, shape.ropeDim, turned);
            rotate(step, rope, static_cast<int>(t), turned);
        }
        if (plain.q80) work_.kernels.quantize(rowOf(plain, t), plain.cols, inputBlocks(plain) + t * plain.cols / 32);
    });
}

void CpuLatentOps::linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                                 Activations& out) {
    const CpuMatrix& matrix = cpuMatrix(w);
    const int64_t rows = matrix.rows / nHeads;
    const int outDim = out.cols / nHeads;
    DLLAMA_CHECK(in.cols == nHeads * matrix.cols && rows % 32 == 0 && (in.q80 || !isQuantized(matrix.dtype)));
    // Token t's head h is row t * nHeads + h.
    const InputView heads{in.f32, inputBlocks(in), matrix.cols};
    const int64_t tiles = (step.nTokens + kMaxItemInputs - 1) / kMaxItemInputs;
    const int rowsPerItem = itemRows(matrix.rows * tiles, 16, work_.pool.nThreads());
    const int64_t pieces = (rows + rowsPerItem - 1) / rowsPerItem;
    work_.forEach(nHeads * pieces * tiles, [&](int64_t item, int) {
        const int64_t firstToken = item % tiles * kMaxItemInputs;
        const int64_t head = item / tiles / pieces, row = item / tiles % pieces * rowsPerItem;
        const int n = static_cast<int>(std::min<int64_t>(kMaxItemInputs, step.nTokens - firstToken));
        const int nRows = static_cast<int>(std::min<int64_t>(rowsPerItem, rows - row));
        int32_t inputRows[kMaxItemInputs] = {};
        for (int i = 0; i < n; i++) inputRows[i] = static_cast<int32_t>((firstToken + i) * nHeads + head);
        alignas(64) float values[kMaxItemInputs * kMaxItemRows];
        multiply(work_.kernels, matrix, head * rows + row, nRows, heads, inputRows, n, values, rowsPerItem);
        for (int i = 0; i < n; i++)
            std::copy_n(values + i * rowsPerItem, nRows, rowOf(out, firstToken + i) + head * outDim + row);
    });
    quantizeRows(work_, step.nTokens, out);
}

void CpuLatentOps::attend(const StepInputs& step, const Activations& queries, const LatentShape& shape,
                          const KvLayer& kv, Activations& out) {
    attendLatentCpu(work_, scratch_, step, queries, shape, kv, out);
}

}  // namespace dllama
