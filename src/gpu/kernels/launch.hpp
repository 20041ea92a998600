#pragma once

#include <cuda_runtime_api.h>

/// How kernels are started. Kernels live one op a file; each exports launchX(const XParams&, const Stream&).
namespace dllama::gpu {

/// Throws CudaError "what: reason" unless `status` is success.
void check(cudaError_t status, const char* what);

/// The stream of a backend, and what launches need to know of its device.
struct Stream {
    cudaStream_t handle = nullptr;
    int nSms = 0;
    int computeCapability = 0;  // 90 for 9.0
    int sharedBytes = 0;        // most dynamic shared memory of a block
    bool overlap = false;       // programmatic dependent launch: from 9.0 on
};

/// Starts a kernel whose parameters are one POD. With `overlap` it may begin while its predecessor runs: every kernel
/// calls waitForPredecessor() (device.cuh) before it touches anything but weights. `cluster` neighbours in x share
/// their memory (from 9.0 on).
template <typename Params>
void launch(const Stream& stream, void (*kernel)(Params), dim3 grid, dim3 block, size_t sharedBytes,
            const Params& params, int cluster = 1) {
    cudaLaunchAttribute attributes[2] = {};
    unsigned nAttributes = 0;
    if (stream.overlap) {
        attributes[nAttributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[nAttributes++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[nAttributes].id = cudaLaunchAttributeClusterDimension;
        attributes[nAttributes++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = sharedBytes;
    config.stream = stream.handle;
    config.attrs = attributes;
    config.numAttrs = nAttributes;
    if (sharedBytes > 40 * 1024)  // 48 KiB less what a kernel has of its own
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(sharedBytes)),
              "shared memory of a kernel");
    void* arguments[] = {const_cast<Params*>(&params)};
    check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments), "kernel launch");
}

constexpr int ceilDiv(int a, int b) {
    return (a + b - 1) / b;
}

}  // namespace dllama::gpu
