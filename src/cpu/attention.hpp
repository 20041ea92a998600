#pragma once

#include "backend/backend.hpp"
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
void ropeStoreCpu(const CpuWork& work, const StepInputs& step, Activations& qkv, const AttentionShape& shape,
                  const Rope& rope, const Norm* qNorm, const Norm* kNorm, KvLayer& kv);

}  // namespace dllama
