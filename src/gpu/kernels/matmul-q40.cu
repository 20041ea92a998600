#include "gpu/kernels/matmul.cuh"

namespace dllama::gpu {

void launchMatmulQ40(const MatmulParams& p, const Stream& stream) {
    launchMatmulTyped<DType::Q40>(p, stream);
}

}  // namespace dllama::gpu
