#include "gpu/cuda-check.hpp"

#include <algorithm>

#include "base/errors.hpp"
#include "gpu/kernels/kernels.hpp"

namespace dllama::gpu {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a failed launch would otherwise be reported again by the next call
    throw CudaError("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

void failOnType(DType type) {
    checkFailed(dtypeName(type), __FILE__, __LINE__);
}

DeviceMemory allocateDevice(size_t bytes) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, std::max<size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "free GPU memory");
        throw CudaError("out of GPU memory: {:.2f} GiB wanted, {:.2f} of {:.2f} GiB free",
                        static_cast<double>(bytes) / (1 << 30), static_cast<double>(free) / (1 << 30),
                        static_cast<double>(total) / (1 << 30));
    }
    check(status, "GPU memory");
    DeviceMemory memory{static_cast<std::byte*>(data), [](std::byte* p) { cudaFree(p); }};
    check(cudaMemset(data, 0, bytes), "GPU memory");
    // cudaMemset of device memory is asynchronous, and the streams here do not wait for the default stream.
    check(cudaStreamSynchronize(cudaStreamLegacy), "GPU memory");
    return memory;
}

DeviceMemory allocatePinned(size_t bytes) {
    void* data = nullptr;
    check(cudaMallocHost(&data, std::max<size_t>(bytes, 1)), "page-locked memory");
    return {static_cast<std::byte*>(data), [](std::byte* p) { cudaFreeHost(p); }};
}

StreamHandle makeStream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    return {stream, cudaStreamDestroy};
}

EventHandle makeEvent() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
    return {event, cudaEventDestroy};
}

}  // namespace dllama::gpu
