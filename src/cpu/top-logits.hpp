#pragma once

#include "backend/backend.hpp"
#include "cpu/cpu-memory.hpp"
#include "cpu/cpu-work.hpp"

namespace dllama {

/// Backend::topLogits. Sums run over fixed pieces of a row in their order: the number of threads changes no bit.
void findTopLogits(const CpuWork& work, Scratch& scratch, const StepInputs& step, const Activations& logits,
                   int firstToken, int k, Activations& out);

}  // namespace dllama
