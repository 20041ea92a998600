#pragma once

#include <cublas_v2.h>

#include <memory>

#include "gpu/cuda-check.hpp"
#include "gpu/kernels/kernels.hpp"

namespace dllama::gpu {

/// Products of many rows by cuBLAS: the weights become f16 first, which pays from some hundred rows on. Sums are f32.
/// Not for steps that are recorded.
class LibraryProduct {
  public:
    explicit LibraryProduct(const Stream& stream);

    /// Brings `rows` Q80 rows into the form that multiply() reads.
    void stage(int rows, const QuantRows& in);
    /// out (rows, outCols) = rows W^T + bias, or += .
    void multiply(int rows, const Weights& w, float* out, int outCols, bool accumulate);

  private:
    __half* grow(DeviceMemory& memory, size_t& have, size_t values);

    using Handle = std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)>;
    const Stream& stream_;
    Handle handle_;
    DeviceMemory scaling_, ones_, rows_, weights_;
    size_t rowsHave_ = 0, weightsHave_ = 0;
};

}  // namespace dllama::gpu
