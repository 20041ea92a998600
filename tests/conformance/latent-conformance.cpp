// Latent attention, from what the hidden state gives to the heads' results, over a paged cache of mixed sequences.

#include <algorithm>
#include <numeric>

#include "backend/latent-ops.hpp"
#include "ops-conformance.hpp"

namespace dllama {

namespace {

struct LatentCase {
    const char* name;
    LatentShape shape;
    DType cache = DType::F16;
    DType weights = DType::F32;
    /// Positions that each sequence has cached, and how many of its last tokens ask.
    std::vector<int> lengths;
    std::vector<int> queries;
};

const LatentCase kCases[] = {
    {.name = "first token", .shape = {4, 64, 32, 16, 64}, .cache = DType::F32, .lengths = {1}, .queries = {1}},
    {.name = "decode, GLM-4.7-Flash", .shape = {20, 512, 192, 64, 256}, .lengths = {700}, .queries = {1}},
    {.name = "decode, more heads than an item takes",
     .shape = {45, 64, 32, 8, 32},
     .cache = DType::F32,
     .lengths = {300},
     .queries = {1}},
    {.name = "prefill, five heads",
     .shape = {5, 96, 64, 32, 96},
     .cache = DType::F32,
     .lengths = {70},
     .queries = {70}},
    {.name = "chunk of a prompt, quantised",
     .shape = {6, 64, 64, 32, 96},
     .weights = DType::Q40,
     .lengths = {300},
     .queries = {37}},
    {.name = "mixed sequences, one head",
     .shape = {1, 128, 32, 10, 64},
     .cache = DType::F32,
     .lengths = {70, 1, 520, 33},
     .queries = {9, 1, 1, 33}},
    {.name = "mixed sequences, quantised",
     .shape = {3, 64, 32, 16, 64},
     .cache = DType::F32,
     .weights = DType::Q80,
     .lengths = {70, 1, 290, 33},
     .queries = {9, 1, 1, 33}},
};

/// The cached tokens of all sequences in blocks of shuffled order, and the rows of those that ask.
struct History {
    Batch batch;
    std::vector<int> asking;

    History(const LatentCase& c, std::mt19937& random) {
        batch.nSequences = static_cast<int>(c.lengths.size());
        batch.maxBlocks = *std::max_element(c.lengths.begin(), c.lengths.end()) / kKvBlockPositions + 2;
        batch.blockTables.resize(static_cast<size_t>(batch.nSequences) * batch.maxBlocks);
        std::iota(batch.blockTables.begin(), batch.blockTables.end(), 0);
        std::shuffle(batch.blockTables.begin(), batch.blockTables.end(), random);
        for (int s = 0; s < batch.nSequences; s++)
            for (int p = 0; p < c.lengths[s]; p++) {
                if (p >= c.lengths[s] - c.queries[s]) asking.push_back(batch.nTokens);
                add(batch, s, p);
            }
    }

    /// `count` of those that ask, as a batch of their own.
    Batch pick(int first, int count) const {
        Batch some;
        some.nSequences = batch.nSequences;
        some.maxBlocks = batch.maxBlocks;
        some.blockTables = batch.blockTables;
        for (int i = first; i < first + count; i++) add(some, batch.sequences[asking[i]], batch.positions[asking[i]]);
        return some;
    }

  private:
    static void add(Batch& to, int sequence, int position) {
        to.nTokens++;
        to.sequences.push_back(sequence);
        to.positions.push_back(position);
        to.contextLengths.push_back(position + 1);
        to.ropePositions.push_back(position);
    }
};

}  // namespace

TEST_P(Conformance, LatentAttention) {
    if (!GetParam().make(1)->latentOps()) GTEST_SKIP() << "this backend has no latent attention";
    for (const LatentCase& c : kCases) {
        SCOPED_TRACE(c.name);
        const LatentShape& shape = c.shape;
        const int extra = 7;  // values before the latent, which belong to the queries
        const int width = extra + shape.rowDim(), qWidth = shape.nHeads * shape.queryDim() + extra;
        const int outWidth = shape.nHeads * shape.valueDim;
        const History history(c, random_);
        const int half = shape.ropeDim / 2, nPositions = *std::max_element(c.lengths.begin(), c.lengths.end());
        std::vector<float> cosines, sines, weight = randoms(shape.latentDim, 0.2f);
        for (int position = 0; position < nPositions; position++)
            for (int j = 0; j < half; j++) {
                const double angle = position * std::pow(10000.0, -static_cast<double>(j) / half);
                cosines.push_back(static_cast<float>(std::cos(angle)));
                sines.push_back(static_cast<float>(std::sin(angle)));
            }
        for (float& w : weight) w += 1.0f;
        const std::vector<float> latents = randoms(static_cast<size_t>(history.batch.nTokens) * width);
        const std::vector<float> q = randoms(history.asking.size() * qWidth);
        const float scale = 1.0f / std::sqrt(static_cast<float>(shape.plainDim));
        const TensorSlice kB =
            addTensor("k_b", c.weights, int64_t{shape.nHeads} * shape.latentDim, shape.plainDim, scale);
        const TensorSlice vB = addTensor("v_b", c.weights, outWidth, shape.latentDim, scale);

        const auto run = [&](Backend& backend, int first, int count) {
            LatentOps& ops = *backend.latentOps();
            Rope rope{Rope::Style::Interleaved, 1, shape.ropeDim, {}, {}};
            rope.cos = backend.uploadVector(cosines.data(), static_cast<int64_t>(cosines.size()));
            rope.sin = backend.uploadVector(sines.data(), static_cast<int64_t>(sines.size()));
            Norm norm;
            norm.weight = backend.uploadVector(weight.data(), shape.latentDim);
            const auto keys = loadMatrix(backend, source_, {kB}), values = loadMatrix(backend, source_, {vB});
            KvLayer kv = backend.allocateLatentLayer(c.cache, static_cast<int>(history.batch.blockTables.size()),
                                                     shape.rowDim());
            const Activations all = upload(backend, history.batch.nTokens, width, latents.data(), false);
            ops.storeLatent(backend.upload(history.batch), all, shape, rope, norm, kv);

            const Batch batch = history.pick(first, count);
            const StepInputs& step = backend.upload(batch);
            const Activations asked = upload(backend, count, qWidth, q.data() + first * qWidth, false);
            Activations plain = poisoned(backend, count, shape.nHeads * shape.plainDim, true);
            Activations queries = poisoned(backend, count, shape.nHeads * shape.rowDim(), false);
            Activations mixed = poisoned(backend, count, shape.nHeads * shape.latentDim, true);
            Activations out = poisoned(backend, count, outWidth, true);
            ops.splitQueries(step, asked, shape, rope, plain, queries);
            ops.linearPerHead(step, plain, *keys, shape.nHeads, queries);
            ops.attend(step, queries, shape, kv, mixed);
            ops.linearPerHead(step, mixed, *values, shape.nHeads, out);
            return download(backend, out, count);
        };
        // Between quantised products a value may round to the next step.
        const double tolerance = isQuantized(c.weights) ? 2e-2 : c.cache == DType::F16 ? 2e-3 : 5e-5;
        check(run, static_cast<int>(history.asking.size()), tolerance);
    }
}

TEST_P(Conformance, NormOfTheFirstValuesOfARow) {
    if (!GetParam().make(1)->latentOps()) GTEST_SKIP() << "this backend has no latent attention";
    const int width = 200, dim = 96, nTokens = 5;
    const std::vector<float> in = randoms(size_t{nTokens} * width), weight = randoms(dim);
    check(
        [&](Backend& backend, int first, int count) {
            const Batch batch = plainBatch(count);
            Norm norm;
            norm.weight = backend.uploadVector(weight.data(), dim);
            const Activations x = upload(backend, count, width, in.data() + first * width, false);
            Activations out = poisoned(backend, count, dim, true);
            backend.latentOps()->normRows(backend.upload(batch), x, norm, out);
            return download(backend, out, count);
        },
        nTokens);
}

}  // namespace dllama
