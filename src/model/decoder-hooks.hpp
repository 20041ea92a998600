#pragma once

namespace dllama {

class LayerDump;
class Trace;

/// What looks on while a decoder computes. Null pointers, the normal case, cost nothing. Both must outlive the decoder.
struct DecoderHooks {
    Trace* trace = nullptr;     // steps, layers, operations and collectives of this rank
    LayerDump* dump = nullptr;  // the residual behind each layer
};

}  // namespace dllama
