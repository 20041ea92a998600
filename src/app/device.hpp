#pragma once

#include <memory>

#include "app/options.hpp"
#include "backend/backend.hpp"
#include "base/thread-pool.hpp"

namespace dllama {

/// The backend that --device names. "auto" takes a GPU where this build and machine have one with `bytes` of free
/// memory, else the CPU, and says why on `status`. Throws ConfigError for an unknown name, CudaError if "cuda" is asked
/// for and there is no GPU that serves.
std::unique_ptr<Backend> openDevice(const DeviceFlags& flags, ThreadPool& pool, size_t bytes, std::FILE* status);

}  // namespace dllama
