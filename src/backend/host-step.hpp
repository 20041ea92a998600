#pragma once

#include <algorithm>

#include "backend/batch.hpp"

namespace dllama {

/// The inputs of a backend that computes in host memory: pointers into the batch itself.
inline StepInputs hostStepInputs(const Batch& batch) {
    StepInputs step;
    step.nTokens = batch.nTokens;
    step.nSequences = batch.nSequences;
    step.maxBlocks = batch.maxBlocks;
    step.nOutputs = batch.nOutputs();
    for (int32_t contextLength : batch.contextLengths)
        step.maxContextLength = std::max(step.maxContextLength, static_cast<int>(contextLength));
    step.embeddingType = batch.embeddingType;
    step.embeddings = batch.embeddings.data();
    step.positions = batch.positions.data();
    step.contextLengths = batch.contextLengths.data();
    step.ropePositions = batch.ropePositions.data();
    step.sequences = batch.sequences.data();
    step.blockTables = batch.blockTables.data();
    step.outputRows = batch.outputRows.data();
    step.outputTemperatures = batch.outputTemperatures.data();
    step.host = &batch;
    return step;
}

}  // namespace dllama
