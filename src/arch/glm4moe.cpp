#include "arch/families.hpp"

namespace dllama {

/// GLM-4.5, 4.5-Air, 4.6, 4.7 and INTELLECT-3: half-split pairs, sigmoid router with a balancing bias, shared experts
/// that every token passes.
void describeGlm4Moe(Architecture& arch) {
    arch.qkNorm = arch.config.useQkNorm;
    arch.qkvBias = arch.config.attentionBias;
    arch.routerBias = true;
}

}  // namespace dllama
