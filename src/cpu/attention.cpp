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

/// Of grouped and of latent attention: a head's query has keyDim values, its result valueDim.
struct Heads {
    int nHeads, nKvHeads, group, headOffset;
    int keyDim, valueDim;
    float scale;
};

class AttentionStep {
  public:
    AttentionStep(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& qkv,
                  const Heads& heads, const KvLayer& kv, Activations& out)
        : work_(work), scratch_(scratch), step_(step), qkv_(qkv), heads_(heads), kv_(kv), out_(out) {
        planItems();
    }

    void run() {
        const int64_t nTiles = static_cast<int64_t>(scratch_.tiles.size()) - 1;
        const int64_t nItems = nTiles * heads_.nKvHeads * nSubgroups_;
        const int nChunks = (step_.maxContextLength + kChunk - 1) / kChunk;
        const size_t partialFloats = static_cast<size_t>(heads_.valueDim) + 2;
        const size_t partialCount = static_cast<size_t>(step_.nTokens) * heads_.nHeads * nChunks;
        const int nThreads = work_.pool.nThreads();

        // Two sets of queries' mixtures, and a block of keys and values.
        threadFloats_ = size_t{2} * kMaxQueries * heads_.valueDim + size_t{2} * kKvBlockPositions * heads_.keyDim;
        threadMemory_ = scratch_.perThread.get<float>(threadFloats_ * nThreads);

        if (nChunks == 1 || nItems >= 2 * nThreads || partialCount * partialFloats * 4 > kMaxPartialBytes) {
            work_.forEach(nItems, [&](int64_t item, int thread) { attendItem(item, thread); });
        } else {
            float* partials = scratch_.partials.get<float>(partialCount * partialFloats);
            work_.forEach(nItems * nChunks, [&](int64_t i, int thread) {
                attendPartial(i / nChunks, static_cast<int>(i % nChunks), nChunks, partials, thread);
            });
            work_.forEach(static_cast<int64_t>(step_.nTokens) * heads_.nHeads,
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
        headsPerItem_ = std::min(heads_.group, kMaxQueries);
        int tokensPerTile = kMaxQueries / headsPerItem_;
        const int wanted = 2 * work_.pool.nThreads();
        for (;;) {
            cutTokens(tokensPerTile);
            nSubgroups_ = (heads_.group + headsPerItem_ - 1) / headsPerItem_;
            const auto nTiles = static_cast<int>(scratch_.tiles.size()) - 1;
            if (nTiles * heads_.nKvHeads * nSubgroups_ >= wanted) return;
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
        item.kvHead = static_cast<int>(index % heads_.nKvHeads);
        const int64_t tile = index / heads_.nKvHeads;
        item.token = scratch_.tiles[tile];
        item.nTokens = scratch_.tiles[tile + 1] - item.token;
        // The group's heads as this rank counts them; it may own only some.
        const int group = item.kvHead * heads_.group - heads_.headOffset;
        const int end = std::min({group + heads_.group, group + (subgroup + 1) * headsPerItem_, heads_.nHeads});
        item.head = std::max(group + subgroup * headsPerItem_, 0);
        item.nHeads = std::max(end - item.head, 0);
        return item;
    }

    float* threadMemory(int thread) const { return threadMemory_ + threadFloats_ * thread; }

    void beginQueries(const Item& item, QueryState* queries, float* mixed) const {
        std::fill_n(mixed, static_cast<size_t>(item.nQueries()) * heads_.valueDim, 0.0f);
        for (int t = 0; t < item.nTokens; t++) {
            for (int h = 0; h < item.nHeads; h++, mixed += heads_.valueDim) {
                const size_t row = static_cast<size_t>(item.token + t) * qkv_.cols;
                const float* q = qkv_.f32 + row + static_cast<size_t>(item.head + h) * heads_.keyDim;
                *queries++ = {q, step_.contextLengths[item.token + t], -std::numeric_limits<float>::infinity(), 0.0f,
                              mixed};
            }
        }
    }

    int lastVisible(const Item& item) const {
        return *std::max_element(step_.contextLengths + item.token, step_.contextLengths + item.token + item.nTokens);
    }

    void attendChunk(const Item& item, int chunk, QueryState* queries, float* kvFloats) const {
        const size_t values = static_cast<size_t>(kKvBlockPositions) * heads_.keyDim;
        const int end = std::min((chunk + 1) * kChunk, lastVisible(item));
        const int32_t* table = step_.blockTables + static_cast<size_t>(step_.sequences[item.token]) * step_.maxBlocks;
        for (int position = chunk * kChunk; position < end; position += kKvBlockPositions) {
            const size_t offset = kvOffset(kv_, table[position / kKvBlockPositions], item.kvHead);
            const float* k = floatsAt(kv_.k, offset, values, kvFloats);
            const float* v = kv_.v ? floatsAt(kv_.v, offset, values, kvFloats + values) : k;
            work_.kernels.attend({k, v, heads_.keyDim, heads_.valueDim, heads_.keyDim, position}, queries,
                                 item.nQueries(), heads_.scale);
        }
    }

    /// The cached values at `offset` bytes; `room` takes them if they have to be widened.
    const float* floatsAt(const void* base, size_t offset, size_t values, float* room) const {
        const std::byte* at = static_cast<const std::byte*>(base) + offset;
        if (kv_.dtype != DType::F16) return reinterpret_cast<const float*>(at);
        work_.kernels.f16ToF32(reinterpret_cast<const uint16_t*>(at), room, static_cast<int64_t>(values));
        return room;
    }

    void attendItem(int64_t index, int thread) const {
        const Item item = itemOf(index);
        if (item.nHeads == 0) return;
        const size_t d = heads_.valueDim;
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
                    work_.kernels.mergeQueries(totals[i], queries[i], heads_.valueDim);
        }
        for (int i = 0; i < item.nQueries(); i++)
            finish(item.token + i / item.nHeads, item.head + i % item.nHeads, totals[i]);
    }

    /// A partial result: largest, sum, mixed[valueDim].
    float* partialAt(float* partials, int64_t tokenHead, int chunk, int nChunks) const {
        return partials + (tokenHead * nChunks + chunk) * (heads_.valueDim + 2);
    }

    void attendPartial(int64_t index, int chunk, int nChunks, float* partials, int thread) const {
        const Item item = itemOf(index);
        if (item.nHeads == 0 || chunk * kChunk >= lastVisible(item)) return;
        const size_t d = heads_.valueDim;
        float* mixed = threadMemory(thread);
        QueryState queries[kMaxQueries];
        beginQueries(item, queries, mixed);
        attendChunk(item, chunk, queries, mixed + 2 * kMaxQueries * d);
        for (int i = 0; i < item.nQueries(); i++) {
            const int64_t token = item.token + i / item.nHeads;
            float* partial = partialAt(partials, token * heads_.nHeads + item.head + i % item.nHeads, chunk, nChunks);
            partial[0] = queries[i].largest;
            partial[1] = queries[i].sum;
            std::copy_n(queries[i].mixed, d, partial + 2);
        }
    }

    void mergePartials(int64_t tokenHead, int nChunks, float* partials, int thread) const {
        const auto token = static_cast<int>(tokenHead / heads_.nHeads);
        float* mixed = threadMemory(thread);
        std::fill_n(mixed, heads_.valueDim, 0.0f);
        QueryState total{nullptr, step_.contextLengths[token], -std::numeric_limits<float>::infinity(), 0.0f, mixed};
        for (int chunk = 0; chunk * kChunk < total.contextLength; chunk++) {
            float* partial = partialAt(partials, tokenHead, chunk, nChunks);
            work_.kernels.mergeQueries(total, {nullptr, total.contextLength, partial[0], partial[1], partial + 2},
                                       heads_.valueDim);
        }
        finish(token, static_cast<int>(tokenHead % heads_.nHeads), total);
    }

    bool quantizesByHead() const { return heads_.valueDim % 32 == 0; }

    void finish(int token, int head, const QueryState& query) const {
        const size_t at = static_cast<size_t>(token) * out_.cols + static_cast<size_t>(head) * heads_.valueDim;
        float* to = out_.f32 + at;
        for (int d = 0; d < heads_.valueDim; d++) to[d] = query.mixed[d] / query.sum;
        if (out_.q80 && quantizesByHead()) work_.kernels.quantize(to, heads_.valueDim, inputBlocks(out_) + at / 32);
    }

    const CpuWork& work_;
    AttentionScratch& scratch_;
    const StepInputs& step_;
    const Activations& qkv_;
    const Heads heads_;
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
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.headDim));
    const Heads heads{shape.nHeads, shape.nKvHeads, shape.group, shape.headOffset, shape.headDim, shape.headDim, scale};
    AttentionStep(work, scratch, step, qkv, heads, kv, out).run();
}

void attendLatentCpu(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& queries,
                     const LatentShape& shape, const KvLayer& kv, Activations& out) {
    DLLAMA_CHECK(shape.rowDim() == kv.headDim && kv.v == nullptr);
    const Heads heads{shape.nHeads, 1, shape.nHeads, 0, shape.rowDim(), shape.latentDim, shape.scale()};
    AttentionStep(work, scratch, step, queries, heads, kv, out).run();
}

}  // namespace dllama
