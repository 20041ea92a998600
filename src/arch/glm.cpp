#include "arch/families.hpp"

namespace dllama {

/// ChatGLM2, ChatGLM3, glm-4-9b-chat, GLM-Edge: pairs side by side in the first rotaryDim values of each head.
void describeGlm(Architecture& arch) {
    arch.ropeStyle = Rope::Style::Interleaved;
    arch.qkvBias = arch.config.attentionBias;
}

}  // namespace dllama
