#include "cpu/kernels.hpp"

#include "base/errors.hpp"

namespace dllama {

const CpuKernels& kernelsOf(Isa isa) {
    DLLAMA_CHECK(isaSupported(isa));
    switch (isa) {
#if defined(__x86_64__)
        case Isa::Avx2:
            return kAvx2Kernels;
        case Isa::Avx512Vnni:
            return kAvx512VnniKernels;
#elif defined(__aarch64__)
        case Isa::Neon:
            return kNeonKernels;
#endif
        default:
            return kGenericKernels;
    }
}

}  // namespace dllama
