#pragma once

#include <cmath>

#include "backend/backend.hpp"

namespace dllama {

/// A rank's heads over a latent cache. A cached row, one a token for all heads, is [latent | rotated key].
struct LatentShape {
    int nHeads = 0;
    int latentDim = 0;  // kv_lora_rank
    int plainDim = 0;   // qk_nope_head_dim: of a head's query, what is not rotated
    int ropeDim = 0;    // qk_rope_head_dim
    int valueDim = 0;   // v_head_dim

    int queryDim() const { return plainDim + ropeDim; }
    int rowDim() const { return latentDim + ropeDim; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(queryDim())); }
};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) in the absorbed form: a head's query is multiplied with
/// the transpose of the matrix that would make keys of latents, so that it meets the cached rows themselves, and what
/// it mixes of the latents is multiplied with the matrix that makes values:
///     score = (K_b^T q_plain . latent + q_rope . k_rope) * scale      out = V_b sum of softmax(score) * latent
/// Rows and results are (nTokens, ...) as in Backend.
class LatentOps {
  public:
    virtual ~LatentOps() = default;

    /// out = norm(the first out.cols values of each row of `in`).
    virtual void normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) = 0;
    /// The last rowDim() values of each row of `in` are a latent and a key: stores [norm(latent) | rotated key] in the
    /// cache at the tokens' positions.
    virtual void storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape, const Rope& rope,
                             const Norm& norm, KvLayer& kv) = 0;
    /// The first values of each row of `q` are the heads' queries, [plain | to be rotated] each. `plain` becomes
    /// (nTokens, nHeads, plainDim); the last ropeDim values of each head of `queries` (nTokens, nHeads, rowDim())
    /// become the rotated part.
    virtual void splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape, const Rope& rope,
                              Activations& plain, Activations& queries) = 0;
    /// Head by head: `in` is (nTokens, nHeads, w.cols), w (nHeads, n, w.cols), and the first n values of each head of
    /// `out` (nTokens, nHeads, out.cols / nHeads) become the product. n is a multiple of 32.
    virtual void linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                               Activations& out) = 0;
    /// out (nTokens, nHeads, latentDim) = softmax(queries . rows * scale) latents over the first `contextLength` cached
    /// rows.
    virtual void attend(const StepInputs& step, const Activations& queries, const LatentShape& shape, const KvLayer& kv,
                        Activations& out) = 0;
};

}  // namespace dllama
