#pragma once

namespace dllama {

/// Of an FFN: x * sigmoid(x), or GELU by its tanh approximation.
enum class Activation { Silu, GeluTanh };

}  // namespace dllama
