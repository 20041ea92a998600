#pragma once

#include "backend/backend.hpp"

/// Operations whose bits all ranks of a cluster must agree on. They are compiled for the base instruction set only and
/// use no library function whose result may differ between machines.
namespace dllama {

/// out = norm(x), n values; out may be x.
void normalize(const Norm& norm, const float* x, float* out, int n);
/// x += norm(y).
void addNormalized(const Norm& norm, const float* y, float* x, int n);

/// The product of two vectors, summed in the order of Backend::addNorm.
float laneDot(const float* a, const float* b, int n);

/// Chooses experts by their logits (nExperts), which are overwritten. `choice` has room for nExperts + nGroups values.
void chooseExperts(const Router& router, float* logits, float* choice, int32_t* experts, float* weights);

}  // namespace dllama
