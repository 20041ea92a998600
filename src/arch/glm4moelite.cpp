#include "arch/families.hpp"

namespace dllama {

/// GLM-4.7-Flash: the experts of GLM-4.5 behind multi-head latent attention, whose keys rotate in pairs side by side.
void describeGlm4MoeLite(Architecture& arch) {
    arch.ropeStyle = Rope::Style::Interleaved;
    arch.routerBias = true;
}

}  // namespace dllama
