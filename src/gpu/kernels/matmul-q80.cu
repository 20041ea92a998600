#include "gpu/kernels/matmul.cuh"

namespace dllama::gpu {

void launchMatmulQ80(const MatmulParams& p, const Stream& stream) {
    launchMatmulTyped<DType::Q80>(p, stream);
}

bool canMatmul(DType dtype, const Stream& stream) {
    const int bytes = dtype == DType::Q40 ? MatmulShape<DType::Q40, 1, 2, 2>::kSharedBytes
                                          : MatmulShape<DType::Q80, 1, 2, 2>::kSharedBytes;
    return isQuantized(dtype) && bytes <= stream.sharedBytes;
}

}  // namespace dllama::gpu
