#pragma once

#include "backend/latent-ops.hpp"

namespace dllama {

/// Latent attention in the plainest way.
class ReferenceLatentOps final : public LatentOps {
  public:
    void normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) override;
    void storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape, const Rope& rope,
                     const Norm& norm, KvLayer& kv) override;
    void splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape, const Rope& rope,
                      Activations& plain, Activations& queries) override;
    void linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                       Activations& out) override;
    void attend(const StepInputs& step, const Activations& queries, const LatentShape& shape, const KvLayer& kv,
                Activations& out) override;
};

}  // namespace dllama
