#include "arch/families.hpp"

namespace dllama {

/// Llama 2 and 3. The converter permutes q and k so that pairs lie side by side, as distributed-llama's files do.
void describeLlama(Architecture& arch) {
    arch.ropeStyle = Rope::Style::Interleaved;
    arch.qkvBias = arch.config.attentionBias;
}

}  // namespace dllama
