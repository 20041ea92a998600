// ropeStore and attention, over a paged cache of mixed sequences.

#include <algorithm>
#include <limits>
#include <numeric>

#include "backend/reference-backend.hpp"
#include "ops-conformance.hpp"

namespace dllama {

namespace {

constexpr int kPositionsInTables = 2048;

struct AttentionCase {
    const char* name;
    AttentionShape shape;
    DType cache = DType::F16;
    Rope::Style style = Rope::Style::Interleaved;
    int ropeParts = 1;
    int rotaryDim = 32;
    bool norms = false;
    /// Positions that each sequence has cached.
    std::vector<int> lengths;
    /// How many of its last tokens ask.
    std::vector<int> queries;
    /// Tokens below this see all of it, the others what lies before them. 0: causal.
    int prefix = 0;
};

AttentionShape heads(int nHeads, int nKvHeads, int headDim, int group, int headOffset = 0) {
    return {nHeads, nKvHeads, headDim, group, headOffset};
}

const AttentionCase kCases[] = {
    {.name = "one token", .shape = heads(4, 4, 64, 1), .lengths = {1}, .queries = {1}},
    {.name = "decode, group 12", .shape = heads(24, 2, 128, 12), .norms = true, .lengths = {333}, .queries = {1}},
    {.name = "decode, group 16, long, f32",
     .shape = heads(32, 2, 64, 16),
     .cache = DType::F32,
     .lengths = {1100},
     .queries = {1}},
    {.name = "prefill, group 24", .shape = heads(24, 1, 32, 24), .lengths = {45}, .queries = {45}},
    {.name = "chunk of a prompt, half split, f32",
     .shape = heads(8, 2, 96, 4),
     .cache = DType::F32,
     .style = Rope::Style::HalfSplit,
     .rotaryDim = 96,
     .norms = true,
     .lengths = {300},
     .queries = {37}},
    {.name = "mixed sequences",
     .shape = heads(12, 4, 64, 3),
     .style = Rope::Style::HalfSplit,
     .rotaryDim = 64,
     .lengths = {70, 1, 520, 33},
     .queries = {9, 1, 1, 33}},
    {.name = "prefix and 2D rope",
     .shape = heads(6, 6, 64, 1),
     .cache = DType::F32,
     .style = Rope::Style::HalfSplit,
     .ropeParts = 2,
     .lengths = {50},
     .queries = {50},
     .prefix = 41},
    {.name = "heads that begin inside a group",
     .shape = heads(10, 3, 64, 6, 4),
     .lengths = {64, 31},
     .queries = {3, 2}},
    {.name = "odd head size, f16", .shape = heads(4, 2, 40, 2), .rotaryDim = 20, .lengths = {65}, .queries = {5}},
    {.name = "odd head size, f32",
     .shape = heads(2, 1, 24, 2),
     .cache = DType::F32,
     .rotaryDim = 24,
     .lengths = {290},
     .queries = {2}},
    {.name = "widest head", .shape = heads(3, 1, 256, 3), .lengths = {40}, .queries = {4}},
};

/// All cached tokens of all sequences, with blocks handed out in shuffled order.
struct History {
    Batch batch;
    std::vector<int> asking;  // the rows that ask
};

History makeHistory(const AttentionCase& c, std::mt19937& random) {
    History history;
    Batch& batch = history.batch;
    batch.nSequences = static_cast<int>(c.lengths.size());
    const int longest = *std::max_element(c.lengths.begin(), c.lengths.end());
    batch.maxBlocks = (longest + kKvBlockPositions - 1) / kKvBlockPositions + 1;
    std::vector<int32_t> blocks(static_cast<size_t>(batch.nSequences) * batch.maxBlocks);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random);
    batch.blockTables = blocks;
    for (int s = 0; s < batch.nSequences; s++) {
        for (int p = 0; p < c.lengths[s]; p++) {
            if (p >= c.lengths[s] - c.queries[s]) history.asking.push_back(batch.nTokens);
            batch.nTokens++;
            batch.positions.push_back(p);
            batch.contextLengths.push_back(p < c.prefix ? c.prefix : p + 1);
            batch.sequences.push_back(s);
        }
    }
    for (int part = 0; part < c.ropeParts; part++)
        for (int t = 0; t < batch.nTokens; t++)
            batch.ropePositions.push_back(part == 0 ? batch.positions[t] + 3
                                                    : std::max(0, batch.positions[t] - c.prefix));
    return history;
}

/// The tokens [first, first + count) of those in `rows`, as a batch of their own.
Batch pick(const Batch& all, const std::vector<int>& rows, int first, int count) {
    Batch batch;
    batch.nTokens = count;
    batch.nSequences = all.nSequences;
    batch.maxBlocks = all.maxBlocks;
    batch.blockTables = all.blockTables;
    for (int i = first; i < first + count; i++) {
        batch.positions.push_back(all.positions[rows[i]]);
        batch.contextLengths.push_back(all.contextLengths[rows[i]]);
        batch.sequences.push_back(all.sequences[rows[i]]);
    }
    const auto parts = all.ropePositions.size() / all.nTokens;
    for (size_t part = 0; part < parts; part++)
        for (int i = first; i < first + count; i++)
            batch.ropePositions.push_back(all.ropePositions[part * all.nTokens + rows[i]]);
    return batch;
}

Rope makeRope(Backend& backend, const AttentionCase& c) {
    Rope rope{c.style, c.ropeParts, c.rotaryDim, {}, {}};
    const int half = c.rotaryDim / 2;
    std::vector<float> cosines, sines;
    for (int position = 0; position < kPositionsInTables; position++) {
        for (int j = 0; j < half; j++) {
            const double angle = position * std::pow(10000.0, -static_cast<double>(j) / half);
            cosines.push_back(static_cast<float>(std::cos(angle)));
            sines.push_back(static_cast<float>(std::sin(angle)));
        }
    }
    rope.cos = backend.uploadVector(cosines.data(), static_cast<int64_t>(cosines.size()));
    rope.sin = backend.uploadVector(sines.data(), static_cast<int64_t>(sines.size()));
    return rope;
}

std::vector<float> rowsOf(const std::vector<float>& values, int width, const std::vector<int>& rows, int first,
                          int count) {
    std::vector<float> picked;
    for (int i = first; i < first + count; i++)
        picked.insert(picked.end(), values.begin() + static_cast<size_t>(rows[i]) * width,
                      values.begin() + static_cast<size_t>(rows[i] + 1) * width);
    return picked;
}

}  // namespace

TEST_P(Conformance, RopeStoreAndAttention) {
    for (const AttentionCase& c : kCases) {
        SCOPED_TRACE(c.name);
        const AttentionShape& shape = c.shape;
        const int width = shape.qkvCols(), outWidth = shape.nHeads * shape.headDim;
        const bool quantized = outWidth % 32 == 0;
        const History history = makeHistory(c, random_);
        const Batch& all = history.batch;
        const std::vector<float> values = randoms(static_cast<size_t>(all.nTokens) * width);
        std::vector<float> weight = randoms(shape.headDim, 0.2f);
        for (float& w : weight) w += 1.0f;

        // Writes the whole history at once, then lets the asking tokens [first, first + count) ask. Returns for each
        // its rotated heads and what attention gives.
        const auto run = [&](Backend& backend, int first, int count) {
            const Rope rope = makeRope(backend, c);
            Norm norm;
            norm.weight = backend.uploadVector(weight.data(), shape.headDim);
            const Norm* used = c.norms ? &norm : nullptr;
            KvLayer kv = backend.allocateKvLayer(c.cache, static_cast<int>(all.blockTables.size()), shape.nKvHeads,
                                                 shape.headDim);
            Activations whole = upload(backend, all.nTokens, width, values.data(), false);
            backend.ropeStore(backend.upload(all), whole, shape, rope, used, used, kv);
            const std::vector<float> turned = download(backend, whole, all.nTokens);

            const Batch batch = pick(all, history.asking, first, count);
            const std::vector<float> asking = rowsOf(turned, width, history.asking, first, count);
            const Activations qkv = upload(backend, count, width, asking.data(), false);
            Activations out = poisoned(backend, count, outWidth, quantized);
            backend.attention(backend.upload(batch), qkv, shape, kv, out);
            const std::vector<float> mixed = download(backend, out, count);

            std::vector<float> result;
            for (int t = 0; t < count; t++) {
                result.insert(result.end(), asking.begin() + t * width, asking.begin() + t * width + outWidth);
                result.insert(result.end(), mixed.begin() + t * outWidth, mixed.begin() + (t + 1) * outWidth);
            }
            return result;
        };
        // F16: a key that was normalised in another order of sums may round to the next f16, 2^-11 away.
        check(run, static_cast<int>(history.asking.size()), c.cache == DType::F16 ? 1e-3 : 3e-5);
    }
}

TEST_P(Conformance, AttendIsRopeStoreAndAttention) {
    // The last token of each sequence through attend(), then once more through attention(), which finds in the cache
    // what attend() has stored.
    for (const AttentionCase& c : kCases) {
        SCOPED_TRACE(c.name);
        const AttentionShape& shape = c.shape;
        const int width = shape.qkvCols(), outWidth = shape.nHeads * shape.headDim;
        const History history = makeHistory(c, random_);
        const Batch& all = history.batch;
        const std::vector<float> values = randoms(static_cast<size_t>(all.nTokens) * width);
        std::vector<float> weight = randoms(shape.headDim, 0.2f);
        for (float& w : weight) w += 1.0f;
        std::vector<int> before, last;
        for (int t = 0; t < all.nTokens; t++) {
            const bool isLast = t + 1 == all.nTokens || all.sequences[t + 1] != all.sequences[t];
            (isLast ? last : before).push_back(t);
        }
        const auto run = [&](Backend& backend, int first, int count) {
            const Rope rope = makeRope(backend, c);
            Norm norm;
            norm.weight = backend.uploadVector(weight.data(), shape.headDim);
            const Norm* used = c.norms ? &norm : nullptr;
            KvLayer kv = backend.allocateKvLayer(c.cache, static_cast<int>(all.blockTables.size()), shape.nKvHeads,
                                                 shape.headDim);
            const auto n = static_cast<int>(before.size());
            if (n > 0) {
                const Batch earlier = pick(all, before, 0, n);
                Activations whole = upload(backend, n, width, rowsOf(values, width, before, 0, n).data(), false);
                backend.ropeStore(backend.upload(earlier), whole, shape, rope, used, used, kv);
            }
            const Batch batch = pick(all, last, first, count);
            const StepInputs& step = backend.upload(batch);
            const std::vector<float> rows = rowsOf(values, width, last, first, count);
            Activations qkv = upload(backend, count, width, rows.data(), false);
            Activations out = poisoned(backend, count, outWidth, outWidth % 32 == 0);
            backend.attend(step, qkv, shape, rope, used, used, kv, out);
            const std::vector<float> attended = download(backend, out, count);

            // The same query, rotated, without a store.
            KvLayer other = backend.allocateKvLayer(c.cache, static_cast<int>(all.blockTables.size()), shape.nKvHeads,
                                                    shape.headDim);
            Activations again = upload(backend, count, width, rows.data(), false);
            backend.ropeStore(step, again, shape, rope, used, used, other);
            backend.attention(step, again, shape, kv, out);
            const std::vector<float> found = download(backend, out, count);
            std::vector<float> result;
            for (int t = 0; t < count; t++) {
                result.insert(result.end(), attended.begin() + t * outWidth, attended.begin() + (t + 1) * outWidth);
                result.insert(result.end(), found.begin() + t * outWidth, found.begin() + (t + 1) * outWidth);
            }
            return result;
        };
        check(run, static_cast<int>(last.size()), c.cache == DType::F16 ? 1e-3 : 3e-5);
    }
}

TEST_P(Conformance, StoringTokenByTokenFillsTheSameCache) {
    const AttentionCase c{.name = "", .shape = heads(8, 2, 64, 4), .norms = true, .lengths = {40}, .queries = {1}};
    const History history = makeHistory(c, random_);
    const Batch& all = history.batch;
    const int width = c.shape.qkvCols(), outWidth = 8 * 64;
    const std::vector<float> values = randoms(static_cast<size_t>(all.nTokens) * width);
    const std::vector<float> weight(64, 1.0f);
    std::vector<int> every(all.nTokens);
    std::iota(every.begin(), every.end(), 0);
    const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
    const Rope rope = makeRope(*backend, c);
    Norm norm;
    norm.weight = backend->uploadVector(weight.data(), 64);

    std::vector<std::vector<float>> results;
    for (const int tokensAtOnce : {all.nTokens, 1, 7}) {
        KvLayer kv = backend->allocateKvLayer(DType::F16, static_cast<int>(all.blockTables.size()), 2, 64);
        Activations out = poisoned(*backend, 1, outWidth, true);
        for (int first = 0; first < all.nTokens; first += tokensAtOnce) {
            const int count = std::min(tokensAtOnce, all.nTokens - first);
            const Batch batch = pick(all, every, first, count);
            Activations qkv = upload(*backend, count, width, values.data() + first * width, false);
            backend->ropeStore(backend->upload(batch), qkv, c.shape, rope, &norm, &norm, kv);
            if (first + count < all.nTokens) continue;
            const std::vector<float> turned = download(*backend, qkv, count);
            const Activations last = upload(*backend, 1, width, turned.data() + (count - 1) * width, false);
            const Batch one = pick(all, every, all.nTokens - 1, 1);
            backend->attention(backend->upload(one), last, c.shape, kv, out);
        }
        results.push_back(download(*backend, out, 1));
    }
    if (!GetParam().batchKeepsBits) {
        expectClose(results[0], results[1], 1e-3);
        expectClose(results[0], results[2], 1e-3);
        return;
    }
    expectSameBits(results[0], results[1], "one by one");
    expectSameBits(results[0], results[2], "in sevens");
}

TEST_P(Conformance, AttentionIgnoresWhatIsNotVisible) {
    // Positions behind `contextLength` may hold anything, as after a rejected draft.
    for (const DType cache : {DType::F16, DType::F32}) {
        AttentionCase c{.name = "", .shape = heads(8, 2, 64, 4), .cache = cache, .lengths = {77}, .queries = {77}};
        const History history = makeHistory(c, random_);
        const Batch& all = history.batch;
        const int width = c.shape.qkvCols(), kept = 40;
        std::vector<float> values = randoms(static_cast<size_t>(all.nTokens) * width);
        const auto run = [&](Backend& backend, int first, int count) {
            const Rope rope = makeRope(backend, c);
            KvLayer kv = backend.allocateKvLayer(cache, static_cast<int>(all.blockTables.size()), 2, 64);
            Activations whole = upload(backend, all.nTokens, width, values.data(), false);
            backend.ropeStore(backend.upload(all), whole, c.shape, rope, nullptr, nullptr, kv);
            const Batch batch = pick(all, history.asking, first, count);
            const std::vector<float> asking = rowsOf(values, width, history.asking, first, count);
            const Activations qkv = upload(backend, count, width, asking.data(), false);
            Activations out = poisoned(backend, count, 8 * 64, true);
            backend.attention(backend.upload(batch), qkv, c.shape, kv, out);
            return download(backend, out, count);
        };
        std::fill(values.begin() + kept * width, values.end(), std::numeric_limits<float>::quiet_NaN());
        check(run, kept, cache == DType::F16 ? 1e-3 : 3e-5);
    }
}

TEST_P(Conformance, AttentionWritesTheQuantisedForm) {
    for (const int headDim : {64, 24}) {
        const AttentionCase c{
            .name = "", .shape = heads(8, 2, headDim, 4), .rotaryDim = 24, .lengths = {300}, .queries = {3}};
        const History history = makeHistory(c, random_);
        const int width = c.shape.qkvCols(), outWidth = 8 * headDim, rows = 30;
        const std::vector<float> values = randoms(static_cast<size_t>(history.batch.nTokens) * width);
        const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
        const TensorSlice weight = addTensor("w", DType::Q80, rows, outWidth);
        const auto matrix = loadMatrix(*backend, source_, {weight});
        const Rope rope = makeRope(*backend, c);
        KvLayer kv =
            backend->allocateKvLayer(DType::F16, static_cast<int>(history.batch.blockTables.size()), 2, headDim);
        Activations whole = upload(*backend, history.batch.nTokens, width, values.data(), false);
        backend->ropeStore(backend->upload(history.batch), whole, c.shape, rope, nullptr, nullptr, kv);
        const Batch batch = pick(history.batch, history.asking, 0, 3);
        const StepInputs& step = backend->upload(batch);
        const Activations qkv = upload(*backend, 3, width, rowsOf(values, width, history.asking, 0, 3).data(), false);
        Activations out = poisoned(*backend, 3, outWidth, true);
        backend->attention(step, qkv, c.shape, kv, out);
        const Activations again = upload(*backend, 3, outWidth, download(*backend, out, 3).data(), true);
        Activations direct = poisoned(*backend, 3, rows, false), uploaded = poisoned(*backend, 3, rows, false);
        backend->linear(step, out, *matrix, direct);
        backend->linear(step, again, *matrix, uploaded);
        expectSameBits(download(*backend, uploaded, 3), download(*backend, direct, 3), "quantised form");
    }
}

}  // namespace dllama
