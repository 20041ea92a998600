#include "cpu/attention.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/errors.hpp"

// A query (a head of a token) walks through the cache in chunks of kChunk positions, each in blocks of
// kKvBlockPositions, with a running softmax; the chunks' results are merged in order. A work item takes the queries of
// some heads of one KV group and some tokens of one sequence, so that they share the loads of K and V. When there are
// too few such items, the chunks become items of their own. Neither changes the order of a query's sums.

namespace dllama {

namespace {

constexpr int kChunk = 8 * kKvBlockPositions;
constexpr int kMaxQueries = 32;
/// Above this the chunks are not spread over threads.
constexpr size_t kMaxPartialBytes = size_t{64} << 20;

/// Bytes of head `head` of a block in k or v before its first position.
size_t kvOffset(const KvLayer& kv, int block, int head) {
    return (static_cast<size_t>(block) * kv.nKvHeads + head) * kKvBlockPositions * kv.headDim * blockBytes(kv.dtype);
}

class AttentionStep {
  public:
    AttentionStep(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& qkv,
                  const AttentionShape& shape, const KvLayer& kv, Activations& out)
        : work_(work), scratch_(scratch), step_(step), qkv_(qkv), shape_(shape), kv_(kv), out_(out) {
        planItems();
    }

    void run() {
        const int64_t nTiles = static_cast<int64_t>(scratch_.tiles.size()) - 1;
        const int64_t nItems = nTiles * shape_.nKvHeads * nSubgroups_;
        const int nChunks = (step_.maxContextLength + kChunk - 1) / kChunk;
        const size_t partialFloats = static_cast<size_t>(shape_.headDim) + 2;
        const size_t partialCount = static_cast<size_t>(step_.nTokens) * shape_.nHeads * nChunks;
        const int nThreads = work_.pool.nThreads();

        const size_t d = shape_.headDim;
        threadFloats_ = 2 * kMaxQueries * d + 2 * kKvBlockPositions * d;
        threadMemory_ = scratch_.perThread.get<float>(threadFloats_ * nThreads);

        if (nChunks == 1 || nItems >= 2 * nThreads || partialCount * partialFloats * 4 > kMaxPartialBytes) {
            work_.forEach(nItems, [&](int64_t item, int thread) { attendItem(item, thread); });
        } else {
            float* partials = scratch_.partials.get<float>(partialCount * partialFloats);
            work_.forEach(nItems * nChunks, [&](int64_t i, int thread) {
                attendPartial(i / nChunks, static_cast<int>(i % nChunks), nChunks, partials, thread);
            });
            work_.forEach(static_cast<int64_t>(step_.nTokens) * shape_.nHeads,
                          [&](int64_t i, int thread) { mergePartials(i, nChunks, partials, thread); });
        }
        if (!quantizesByHead()) quantizeRows(work_, step_.nTokens, out_);
    }

  private:
    struct Item {
        int token, nTokens;  // of one sequence
        int kvHead;
        int head, nHeads;
        int nQueries() const { return nTokens * nHeads; }
    };

    /// Cuts tokens into tiles (the first token of each, and the end) and the heads of a group into subgroups.
    void planItems() {
        headsPerItem_ = std::min(shape_.group, kMaxQueries);
        int tokensPerTile = kMaxQueries / headsPerItem_;
        const int wanted = 2 * work_.pool.nThreads();
        for (;;) {
            cutTokens(tokensPerTile);
            nSubgroups_ = (shape_.group + headsPerItem_ - 1) / headsPerItem_;
            const auto nTiles = static_cast<int>(scratch_.tiles.size()) - 1;
            if (nTiles * shape_.nKvHeads * nSubgroups_ >= wanted) return;
            if (tokensPerTile > 1 && nTiles < step_.nTokens) {
                tokensPerTile = (tokensPerTile + 1) / 2;
            } else if (headsPerItem_ > 4) {
                headsPerItem_ = (headsPerItem_ + 1) / 2;
            } else {
                return;
            }
        }
    }

    void cutTokens(int tokensPerTile) {
        scratch_.tiles.clear();
        for (int t = 0, begin = 0; t < step_.nTokens; t++) {
            const bool cut = t == 0 || t - begin == tokensPerTile || step_.sequences[t] != step_.sequences[t - 1];
            if (!cut) continue;
            scratch_.tiles.push_back(t);
            begin = t;
        }
        scratch_.tiles.push_back(step_.nTokens);
    }

    Item itemOf(int64_t index) const {
        Item item;
        const auto subgroup = static_cast<int>(index % nSubgroups_);
        index /= nSubgroups_;
        item.kvHead = static_cast<int>(index % shape_.nKvHeads);
        const int64_t tile = index / shape_.nKvHeads;
        item.token = scratch_.tiles[tile];
        item.nTokens = scratch_.tiles[tile + 1] - item.token;
        // The group's heads as this rank counts them; it may own only some.
        const int group = item.kvHead * shape_.group - shape_.headOffset;
        const int end = std::min({group + shape_.group, group + (subgroup + 1) * headsPerItem_, shape_.nHeads});
        item.head = std::max(group + subgroup * headsPerItem_, 0);
        item.nHeads = std::max(end - item.head, 0);
        return item;
    }

    float* threadMemory(int thread) const { return threadMemory_ + threadFloats_ * thread; }

    void beginQueries(const Item& item, QueryState* queries, float* mixed) const {
        std::fill_n(mixed, static_cast<size_t>(item.nQueries()) * shape_.headDim, 0.0f);
        for (int t = 0; t < item.nTokens; t++) {
            for (int h = 0; h < item.nHeads; h++, mixed += shape_.headDim) {
                const size_t row = static_cast<size_t>(item.token + t) * qkv_.cols;
                const float* q = qkv_.f32 + row + static_cast<size_t>(item.head + h) * shape_.headDim;
                *queries++ = {q, step_.contextLengths[item.token + t], -std::numeric_limits<float>::infinity(), 0.0f,
                              mixed};
            }
        }
    }

    int lastVisible(const Item& item) const {
        return *std::max_element(step_.contextLengths + item.token, step_.contextLengths + item.token + item.nTokens);
    }

    void attendChunk(const Item& item, int chunk, QueryState* queries, float* kvFloats) const {
        const size_t values = static_cast<size_t>(kKvBlockPositions) * shape_.headDim;
        const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.headDim));
        const int end = std::min((chunk + 1) * kChunk, lastVisible(item));
        const int32_t* table = step_.blockTables + static_cast<size_t>(step_.sequences[item.token]) * step_.maxBlocks;
        for (int position = chunk * kChunk; position < end; position += kKvBlockPositions) {
            const size_t offset = kvOffset(kv_, table[position / kKvBlockPositions], item.kvHead);
            const auto* k = reinterpret_cast<const float*>(static_cast<const std::byte*>(kv_.k) + offset);
            const auto* v = reinterpret_cast<const float*>(static_cast<const std::byte*>(kv_.v) + offset);
            if (kv_.dtype == DType::F16) {
                work_.kernels.f16ToF32(reinterpret_cast<const uint16_t*>(k), kvFloats, values);
                work_.kernels.f16ToF32(reinterpret_cast<const uint16_t*>(v), kvFloats + values, values);
                k = kvFloats;
                v = kvFloats + values;
            }
            work_.kernels.attend({k, v, shape_.headDim, position}, queries, item.nQueries(), scale);
        }
    }

    void attendItem(int64_t index, int thread) const {
        const Item item = itemOf(index);
        if (item.nHeads == 0) return;
        const size_t d = shape_.headDim;
        float* totalMixed = threadMemory(thread);
        float* chunkMixed = totalMixed + kMaxQueries * d;
        float* kvFloats = chunkMixed + kMaxQueries * d;
        QueryState totals[kMaxQueries], queries[kMaxQueries];
        beginQueries(item, totals, totalMixed);
        const int last = lastVisible(item);
        for (int chunk = 0; chunk * kChunk < last; chunk++) {
            beginQueries(item, queries, chunkMixed);
            attendChunk(item, chunk, queries, kvFloats);
            for (int i = 0; i < item.nQueries(); i++)
                if (queries[i].contextLength > chunk * kChunk)
                    work_.kernels.mergeQueries(totals[i], queries[i], shape_.headDim);
        }
        for (int i = 0; i < item.nQueries(); i++)
            finish(item.token + i / item.nHeads, item.head + i % item.nHeads, totals[i]);
    }

    /// A partial result: largest, sum, mixed[headDim].
    float* partialAt(float* partials, int64_t tokenHead, int chunk, int nChunks) const {
        return partials + (tokenHead * nChunks + chunk) * (shape_.headDim + 2);
    }

    void attendPartial(int64_t index, int chunk, int nChunks, float* partials, int thread) const {
        const Item item = itemOf(index);
        if (item.nHeads == 0 || chunk * kChunk >= lastVisible(item)) return;
        const size_t d = shape_.headDim;
        float* mixed = threadMemory(thread);
        QueryState queries[kMaxQueries];
        beginQueries(item, queries, mixed);
        attendChunk(item, chunk, queries, mixed + 2 * kMaxQueries * d);
        for (int i = 0; i < item.nQueries(); i++) {
            const int64_t token = item.token + i / item.nHeads;
            float* partial = partialAt(partials, token * shape_.nHeads + item.head + i % item.nHeads, chunk, nChunks);
            partial[0] = queries[i].largest;
            partial[1] = queries[i].sum;
            std::copy_n(queries[i].mixed, d, partial + 2);
        }
    }

    void mergePartials(int64_t tokenHead, int nChunks, float* partials, int thread) const {
        const auto token = static_cast<int>(tokenHead / shape_.nHeads);
        float* mixed = threadMemory(thread);
        std::fill_n(mixed, shape_.headDim, 0.0f);
        QueryState total{nullptr, step_.contextLengths[token], -std::numeric_limits<float>::infinity(), 0.0f, mixed};
        for (int chunk = 0; chunk * kChunk < total.contextLength; chunk++) {
            float* partial = partialAt(partials, tokenHead, chunk, nChunks);
            work_.kernels.mergeQueries(total, {nullptr, total.contextLength, partial[0], partial[1], partial + 2},
                                       shape_.headDim);
        }
        finish(token, static_cast<int>(tokenHead % shape_.nHeads), total);
    }

    bool quantizesByHead() const { return shape_.headDim % 32 == 0; }

    void finish(int token, int head, const QueryState& query) const {
        const size_t at = static_cast<size_t>(token) * out_.cols + static_cast<size_t>(head) * shape_.headDim;
        float* to = out_.f32 + at;
        for (int d = 0; d < shape_.headDim; d++) to[d] = query.mixed[d] / query.sum;
        if (out_.q80 && quantizesByHead()) work_.kernels.quantize(to, shape_.headDim, inputBlocks(out_) + at / 32);
    }

    const CpuWork& work_;
    AttentionScratch& scratch_;
    const StepInputs& step_;
    const Activations& qkv_;
    const AttentionShape& shape_;
    const KvLayer& kv_;
    Activations& out_;
    int headsPerItem_ = 1;
    int nSubgroups_ = 1;
    float* threadMemory_ = nullptr;
    size_t threadFloats_ = 0;
};

}  // namespace

void attendCpu(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& qkv,
               const AttentionShape& shape, const KvLayer& kv, Activations& out) {
    DLLAMA_CHECK(shape.headDim == kv.headDim && shape.nKvHeads == kv.nKvHeads);
    AttentionStep(work, scratch, step, qkv, shape, kv, out).run();
}

}  // namespace dllama
