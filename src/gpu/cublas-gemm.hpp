#pragma once

#include <cublas_v2.h>

#include <memory>

#include "gpu/cuda-check.hpp"
#include "gpu/kernels/kernels.hpp"

namespace dllama::gpu {

/// Products of many rows by cuBLAS: quantised weights become f16 first, which pays from some hundred rows on. Sums are
/// f32. Not for steps that are recorded.
class CublasGemm {
  public:
    explicit CublasGemm(const Stream& stream);

    /// Brings `rows` Q80 rows into the form that multiply() reads.
    void stage(int rows, const QuantRows& in);
    /// out (rows, outCols) = rows W^T + bias, or += .
    void multiply(int rows, const Weights& w, float* out, int outCols, bool accumulate);

    /// Whether multiplyFloats() takes weights of this type.
    static bool takesFloats(DType dtype, const Stream& stream) {
        return dtype == DType::F16 || (dtype == DType::BF16 && stream.computeCapability >= 80);
    }
    /// The same with f32 rows, each as the sum of two of the weights' type.
    void multiplyFloats(int rows, const float* in, const Weights& w, float* out, int outCols, bool accumulate);

  private:
    void product(int rows, const Weights& w, const void* weights, const void* in, cudaDataType_t type, float* out,
                 int outCols, bool accumulate);
    __half* grow(DeviceMemory& memory, size_t& have, size_t values);

    using Handle = std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)>;
    const Stream& stream_;
    Handle handle_;
    DeviceMemory scaling_, ones_, rows_, weights_;
    size_t rowsHave_ = 0, weightsHave_ = 0;
};

}  // namespace dllama::gpu
