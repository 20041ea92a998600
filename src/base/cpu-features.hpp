#pragma once

#include <string>

namespace dllama {

/// Instruction sets that have kernels of their own (src/cpu/isa).
enum class Isa { Generic, Avx2, Avx512Vnni, Amx, Neon };

const char* isaName(Isa isa);
/// True if this CPU can run the kernels of `isa`.
bool isaSupported(Isa isa);
/// The best supported set, or the one named by DLLAMA_FORCE_ISA (generic, avx2, avx512vnni, amx, neon). Throws
/// ConfigError if the named one is unknown or this CPU lacks it.
Isa chooseIsa();
/// What the CPU offers, for the start message, as distributed-llama prints it: "avx2 avx512f vnni".
std::string cpuFeatureNames();

}  // namespace dllama
