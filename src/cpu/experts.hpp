#pragma once

#include "backend/backend.hpp"
#include "cpu/cpu-memory.hpp"
#include "cpu/cpu-work.hpp"

namespace dllama {

/// The tokens of a step sorted by expert. An entry is one (token, slot) whose expert this rank owns.
struct ExpertScratch {
    std::vector<int32_t> begins;     // (nExperts + 1) first entry of each expert
    std::vector<int32_t> active;     // experts that have entries
    std::vector<int32_t> tokens;     // (entries) the token of each
    std::vector<int32_t> rows;       // (entries) 0, 1, 2, ...
    std::vector<int32_t> positions;  // (nTokens, topK) entry of a token's slot, or -1
    Scratch hidden;                  // (entries, ffDim) as InputBlocks or floats
    Scratch products;                // (threads, entries, rows of an item)
};

/// Backend::experts on the CPU.
void runExperts(const CpuWork& work, ExpertScratch& scratch, const StepInputs& step, const Activations& in,
                const Routing& routing, const CpuExpertSet& set, Activations& out);

}  // namespace dllama
