#include "arch/families.hpp"

namespace dllama {

/// GLM-4-0414 and GLM-Z1: as glm, with norms behind attention and FFN as well as before them.
void describeGlm4(Architecture& arch) {
    arch.ropeStyle = Rope::Style::Interleaved;
    arch.qkvBias = arch.config.attentionBias;
    arch.postNorms = true;
}

}  // namespace dllama
