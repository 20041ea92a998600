#pragma once

#include "backend/latent-ops.hpp"
#include "cpu/cpu-memory.hpp"
#include "cpu/cpu-work.hpp"

namespace dllama {

struct AttentionScratch {
    Scratch perThread;
    Scratch partials;
    std::vector<int32_t> tiles;
};

/// Backend::attention and Backend::ropeStore on the CPU.
void attendCpu(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& qkv,
               const AttentionShape& shape, const KvLayer& kv, Activations& out);
/// LatentOps::attend.
void attendLatentCpu(const CpuWork& work, AttentionScratch& scratch, const StepInputs& step, const Activations& queries,
                     const LatentShape& shape, const KvLayer& kv, Activations& out);
void ropeStoreCpu(const CpuWork& work, const StepInputs& step, Activations& qkv, const AttentionShape& shape,
                  const Rope& rope, const Norm* qNorm, const Norm* kNorm, KvLayer& kv);

/// Rotates one head of `token` in place.
void rotate(const StepInputs& step, const Rope& rope, int token, float* head);
/// Writes a row of kv.headDim values to the cache, `at` values behind `base`.
void storeRow(const CpuWork& work, const KvLayer& kv, void* base, size_t at, const float* row);

}  // namespace dllama
