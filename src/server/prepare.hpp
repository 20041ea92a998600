#pragma once

#include <vector>

#include "api/generation.hpp"
#include "engine/sequence.hpp"
#include "server/choice-stream.hpp"
#include "server/served-model.hpp"

namespace dllama {

/// A request ready for the engine: one entry for each prompt, and what its choices' tokens mean.
struct PreparedPrompt {
    std::vector<int> tokens;
    ChoiceRules rules;
};

struct PreparedRequest {
    api::GenerationRequest request;
    std::vector<PreparedPrompt> prompts;
    int nPromptTokens = 0;

    /// What the engine is asked for choice number c.
    Request engineRequest(const ServedModel& model, int choice) const;
};

/// Renders and encodes the prompts. Throws ApiError: a model that is not served, what the chat format refuses, a prompt
/// longer than the context.
PreparedRequest prepareRequest(api::GenerationRequest request, const ServedModel& model);

}  // namespace dllama
