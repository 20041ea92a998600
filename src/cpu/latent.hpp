#pragma once

#include "backend/latent-ops.hpp"
#include "cpu/attention.hpp"
#include "cpu/cpu-work.hpp"

namespace dllama {

/// Latent attention on the CPU.
class CpuLatentOps final : public LatentOps {
  public:
    CpuLatentOps(const CpuWork& work, AttentionScratch& scratch) : work_(work), scratch_(scratch) {}

    void normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) override;
    void storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape, const Rope& rope,
                     const Norm& norm, KvLayer& kv) override;
    void splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape, const Rope& rope,
                      Activations& plain, Activations& queries) override;
    void linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                       Activations& out) override;
    void attend(const StepInputs& step, const Activations& queries, const LatentShape& shape, const KvLayer& kv,
                Activations& out) override;

  private:
    const CpuWork& work_;
    AttentionScratch& scratch_;
    Scratch rows_;
};

}  // namespace dllama
