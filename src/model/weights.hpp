#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "arch/architecture.hpp"
#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "parallel/shard-plan.hpp"

namespace dllama {

/// Gated or plain FFN: `gate` is null where the architecture has none. All are null where a rank has no share.
struct FfnWeights {
    std::unique_ptr<Matrix> gate, up, down;
};

struct MoeWeights {
    Router router;
    std::unique_ptr<ExpertSet> experts;
    FfnWeights shared;
};

/// Of multi-head latent attention, behind the projection of the hidden state; null where a rank has no heads.
struct LatentWeights {
    std::optional<Norm> queryNorm;  // with a query latent
    Norm norm;
    std::unique_ptr<Matrix> qB;  // with a query latent: (heads, plain | rotated)
    std::unique_ptr<Matrix> kB;  // (heads, latent) x plain
    std::unique_ptr<Matrix> vB;  // (heads, value) x latent
};

struct LayerWeights {
    Norm attnNorm;
    std::unique_ptr<Matrix> qkv;  // q, k, v stacked; latent attention: query latent (or q), latent and key
    std::optional<LatentWeights> latent;
    std::optional<Norm> qNorm, kNorm;
    std::unique_ptr<Matrix> o;
    std::optional<Norm> postAttnNorm;
    Norm ffnNorm;
    FfnWeights ffn;                 // dense layers
    std::optional<MoeWeights> moe;  // moe layers
    std::optional<Norm> postFfnNorm;
};

/// The weights of one rank.
struct RankWeights {
    std::vector<LayerWeights> layers;
    Norm finalNorm;
    std::unique_ptr<Matrix> head;
};

/// Called from the loading threads, one at a time: bytes laid out so far, of how many.
using LoadProgress = std::function<void(size_t done, size_t total)>;

/// Reads and lays out what `rank` holds, tensor groups in parallel. Throws FormatError for a damaged tensor.
RankWeights loadWeights(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source,
                        Backend& backend, ThreadPool& pool, const LoadProgress& progress);

/// Bytes of `rank`'s weights as they are stored, the embedding table left out: it stays in the file.
size_t storedWeightBytes(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source);

}  // namespace dllama
