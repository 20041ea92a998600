#include "cpu/kernels.hpp"

#include "base/errors.hpp"

namespace dllama {

#if defined(__x86_64__)
namespace {

CpuKernels withAmx() {
    CpuKernels kernels = kAvx512VnniKernels;
    for (int type = 0; type < kNDTypes; type++)
        if (kAmxKernels.of[type]) kernels.multiply.of[type] = kAmxKernels.of[type];
    return kernels;
}

}  // namespace
#endif

const CpuKernels& kernelsOf(Isa isa) {
    DLLAMA_CHECK(isaSupported(isa));
    switch (isa) {
#if defined(__x86_64__)
        case Isa::Avx2:
            return kAvx2Kernels;
        case Isa::Avx512Vnni:
            return kAvx512VnniKernels;
        case Isa::Amx: {
            static const CpuKernels kernels = withAmx();
            return kernels;
        }
#elif defined(__aarch64__)
        case Isa::Neon:
            return kNeonKernels;
#endif
        default:
            return kGenericKernels;
    }
}

}  // namespace dllama
