#pragma once

#include "gpu/cuda-core.hpp"

namespace dllama::gpu {

/// Rotation, KV cache and attention.
class AttentionOps {
  public:
    explicit AttentionOps(CudaCore& core) : core_(core) {}

    /// As Backend::ropeStore, without the Q80 form of qkv.
    void ropeStore(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, const KvLayer& kv);
    /// As Backend::attention.
    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   const Activations& out);
    /// Both in one kernel; false where there is none for this step.
    bool attend(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const Rope& rope,
                const Norm* qNorm, const Norm* kNorm, const KvLayer& kv, const Activations& out);

  private:
    void launchDecode(AttentionParams p);

    CudaCore& core_;
};

}  // namespace dllama::gpu
