#include "gpu/cublas-gemm.hpp"

#include "base/errors.hpp"

namespace dllama::gpu {

namespace {

void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS) throw CudaError("{}: {}", what, cublasGetStatusString(status));
}

cublasHandle_t makeHandle() {
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle), "cuBLAS");
    return handle;
}

}  // namespace

CublasGemm::CublasGemm(const Stream& stream)
    : stream_(stream),
      handle_(makeHandle(), cublasDestroy),
      scaling_(allocateDevice(sizeof(Scaling))),
      ones_(allocateDevice(2 * sizeof(float))) {
    check(cublasSetStream(handle_.get(), stream.handle), "cuBLAS");
    // The factor that undoes the rows' scaling is made on the device.
    check(cublasSetPointerMode(handle_.get(), CUBLAS_POINTER_MODE_DEVICE), "cuBLAS");
    const float zeroAndOne[2] = {0.0f, 1.0f};
    check(cudaMemcpy(ones_.get(), zeroAndOne, sizeof zeroAndOne, cudaMemcpyHostToDevice), "cuBLAS");
}

__half* CublasGemm::grow(DeviceMemory& memory, size_t& have, size_t values) {
    if (values > have) {
        check(cudaStreamSynchronize(stream_.handle), "scratch memory");
        memory = nullptr;
        memory = allocateDevice(values * sizeof(__half));
        have = values;
    }
    return reinterpret_cast<__half*>(memory.get());
}

void CublasGemm::stage(int rows, const QuantRows& in) {
    __half* to = grow(rows_, rowsHave_, static_cast<size_t>(rows) * in.groups * kGroup);
    launchStageAll({rows, in, to, reinterpret_cast<Scaling*>(scaling_.get())}, stream_);
}

void CublasGemm::multiply(int rows, const Weights& w, float* out, int outCols, bool accumulate) {
    __half* weights = grow(weights_, weightsHave_, static_cast<size_t>(w.rows) * w.groups * kGroup);
    launchWidenWeights({w, weights}, stream_);
    product(rows, w, weights, rows_.get(), CUDA_R_16F, out, outCols, accumulate);
    if (w.bias) launchAddBias({rows, w.rows, outCols, w.bias, out}, stream_);
}

void CublasGemm::multiplyFloats(int rows, const float* in, const Weights& w, float* out, int outCols, bool accumulate) {
    const size_t values = static_cast<size_t>(rows) * w.groups * kGroup;
    __half* to = grow(rows_, rowsHave_, 2 * values);
    launchStageFloats({rows, w.cols, w.groups, in, w.dtype, to, reinterpret_cast<Scaling*>(scaling_.get())}, stream_);
    const cudaDataType_t type = w.dtype == DType::BF16 ? CUDA_R_16BF : CUDA_R_16F;
    product(rows, w, w.data, to, type, out, outCols, accumulate);
    product(rows, w, w.data, to + values, type, out, outCols, true);
    if (w.bias) launchAddBias({rows, w.rows, outCols, w.bias, out}, stream_);
}

/// out (+)= in weights^T, both (.., groups * 128) of `type`.
void CublasGemm::product(int rows, const Weights& w, const void* weights, const void* in, cudaDataType_t type,
                         float* out, int outCols, bool accumulate) {
    const int cols = w.groups * kGroup;
    const auto* undo = &reinterpret_cast<const Scaling*>(scaling_.get())->undo;
    const auto* keep = reinterpret_cast<const float*>(ones_.get()) + (accumulate ? 1 : 0);
    // cuBLAS counts columns first: its (w.rows, rows) result is ours row by row.
    check(cublasGemmEx(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, w.rows, rows, cols, undo, weights, type, cols, in, type,
                       cols, keep, out, CUDA_R_32F, outCols, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "cuBLAS");
}

}  // namespace dllama::gpu
