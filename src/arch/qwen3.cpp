#include "arch/families.hpp"

namespace dllama {

/// Qwen3 and Qwen3-MoE: q and k normalised per head, softmax router.
void describeQwen3(Architecture& arch) {
    arch.qkNorm = true;
    arch.qkvBias = arch.config.attentionBias;
}

}  // namespace dllama
