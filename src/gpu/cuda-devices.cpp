#include <cuda_runtime_api.h>

#include "base/errors.hpp"
#include "gpu/cuda-backend.hpp"
#include "gpu/cuda-device.hpp"
#include "gpu/kernel-choice.hpp"

namespace dllama {

using namespace gpu;

int gpu::openDevice(int index) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    int driver = 0;
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
        throw CudaError("no NVIDIA driver; --device cpu works without one");
    if (status == cudaErrorInsufficientDriver)
        throw CudaError("the NVIDIA driver is too old for this build (CUDA {}.{}); --device cpu works without it",
                        CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        throw CudaError("no NVIDIA GPU; --device cpu works without one");
    check(status, "GPU");
    if (index < 0 || index >= count) throw CudaError("no GPU {}: this machine has {}", index, count);
    check(cudaSetDevice(index), "cudaSetDevice");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "device properties");
    if (properties.major * 10 + properties.minor < kOldestCapability)
        throw CudaError("{}: compute capability {}.{}, at least 7.5 is needed", properties.name, properties.major,
                        properties.minor);
    if (!hasDeviceCode())
        throw CudaError("{}: this build has no code for compute capability {}.{}", properties.name, properties.major,
                        properties.minor);
    return index;
}

std::vector<std::string> cudaDevices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return {};
    }
    std::vector<std::string> lines;
    for (int i = 0; i < count; i++) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, i), "device properties");
        lines.push_back(fmt::format("{}, {:.1f} GiB, compute capability {}.{}", properties.name,
                                    static_cast<double>(properties.totalGlobalMem) / (1 << 30), properties.major,
                                    properties.minor));
    }
    return lines;
}

size_t cudaFreeMemory(int gpuIndex) {
    check(cudaSetDevice(gpuIndex), "cudaSetDevice");
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "free GPU memory");
    return free;
}

double cudaMemoryBandwidth(int gpuIndex) {
    int kilohertz = 0, bits = 0;
    check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, gpuIndex), "memory clock");
    check(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, gpuIndex), "memory width");
    return 2.0 * 1e3 * kilohertz * bits / 8;  // both edges of the clock
}

}  // namespace dllama
