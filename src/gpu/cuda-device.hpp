#pragma once

#include "backend/backend.hpp"
#include "gpu/kernels/launch.hpp"

namespace dllama::gpu {

/// The side of a CUDA backend that communicators work on.
class CudaDevice {
  public:
    virtual ~CudaDevice() = default;
    virtual int gpuIndex() const = 0;
    /// What is started here happens in the order of the backend's operations, and becomes part of recorded steps.
    virtual const Stream& stream() const = 0;
    /// The rows' Q80 form from their f32 form, if the buffer has one.
    virtual void updateForms(int rows, Activations& a) = 0;
    /// Waits for the device and drops recorded steps: what they refer to is about to go.
    virtual void forgetSteps() = 0;
};

/// Checks that this build can use the GPU and makes it the thread's; returns `index`. Throws CudaError.
int openDevice(int index);

/// Programmer's error if `backend` is not a CUDA backend.
CudaDevice& cudaDeviceOf(Backend& backend);

}  // namespace dllama::gpu
