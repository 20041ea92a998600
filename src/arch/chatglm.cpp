#include <cmath>

#include "arch/families.hpp"

namespace dllama {

/// The original GLM (ChatGLM-6B): LayerNorm and biases everywhere, 2D RoPE, attention over the prompt in both
/// directions, and a residual that takes the normalised input times sqrt(2 * 28), a constant of the published code
/// whatever the number of layers (modeling_chatglm.py).
void describeChatglm(Architecture& arch) {
    arch.norm = Norm::Kind::Layer;
    arch.ropeParts = 2;
    arch.qkvBias = true;
    arch.linearBias = true;
    arch.gatedFfn = false;
    arch.activation = Activation::GeluTanh;
    arch.residualAlpha = static_cast<float>(std::sqrt(2.0 * 28.0));
    arch.prefixMask = true;
}

}  // namespace dllama
