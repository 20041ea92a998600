#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"

namespace dllama {

struct CudaOptions {
    int gpuIndex = 0;
    /// Prompts through the f16 tensor cores: activations and weights are rounded to 11 bits, sums are f32. Without it
    /// they go through integer products as decoding does: slower, and as exact as f32.
    bool halfProducts = true;
    /// From this many rows on, quantised matrices become f16 and go through cuBLAS.
    int libraryRows = 256;
};

/// The backend of one NVIDIA GPU (compute capability 7.5 and up). Throws CudaError: no such device, a driver that is
/// too old, no code for the device.
std::unique_ptr<Backend> makeCudaBackend(const CudaOptions& options = {});

/// One line a GPU: "NVIDIA GeForce RTX 3060, 11.6 GiB, compute capability 8.6". Empty without GPU or driver.
std::vector<std::string> cudaDevices();

/// Free memory of a GPU in bytes.
size_t cudaFreeMemory(int gpuIndex);

/// Bytes a second between a GPU and its memory at most, by clock and width.
double cudaMemoryBandwidth(int gpuIndex);

}  // namespace dllama
