#pragma once

#include <memory>

#include "parallel/device-collectives.hpp"

namespace dllama {

/// How one GPU of this process adds up with others: by NCCL if this machine has it, and in their memory where they can
/// reach each other. Throws CudaError if there is no such GPU.
std::unique_ptr<DeviceCollectives> makeCudaCollectives(int gpuIndex);

/// "2.28.9", or empty if this machine has no NCCL.
std::string ncclVersion();

}  // namespace dllama
