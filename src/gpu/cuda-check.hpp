#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.hpp"
#include "gpu/kernels/launch.hpp"

namespace dllama::gpu {

/// `bytes` of zeroed device memory. Throws CudaError, naming the device's free memory, if there is not enough.
DeviceMemory allocateDevice(size_t bytes);

/// Page-locked host memory.
DeviceMemory allocatePinned(size_t bytes);

/// A stream, an event or a graph that ends itself.
using StreamHandle = std::unique_ptr<CUstream_st, cudaError_t (*)(cudaStream_t)>;
using EventHandle = std::unique_ptr<CUevent_st, cudaError_t (*)(cudaEvent_t)>;
using GraphHandle = std::unique_ptr<CUgraphExec_st, cudaError_t (*)(cudaGraphExec_t)>;
StreamHandle makeStream();
EventHandle makeEvent();

}  // namespace dllama::gpu
