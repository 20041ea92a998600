#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "app/options.hpp"
#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "parallel/device-collectives.hpp"

namespace dllama {

/// "0", "0,1": GPUs by their numbers. Throws ConfigError for what is no list of numbers and for one that comes twice.
std::vector<int> parseGpuList(const std::string& text);

/// A processor of this machine that one rank computes on.
struct Device {
    int gpu = -1;  // -1: the CPU
    bool isGpu() const { return gpu >= 0; }
};

/// The devices that --device and --gpu-index name, at least one. "auto" takes a GPU where this build and machine have
/// one with `bytes` of free memory, else the CPU, and says why on `status`. Throws ConfigError for what cannot be,
/// CudaError if a GPU is asked for that is not there or does not serve.
std::vector<Device> chooseDevices(const DeviceFlags& flags, size_t bytes, std::FILE* status);

/// Its backend; what it is goes to `status`.
std::unique_ptr<Backend> openDevice(Device device, ThreadPool& pool, std::FILE* status);

/// How it adds up with other ranks' devices; null for the CPU.
std::unique_ptr<DeviceCollectives> openCollectives(Device device);

/// Bytes that a rank may use there, at most `limit` if that is not 0: of a GPU what is free now, less a reserve for
/// what no plan counts. 0 for the CPU without limit.
uint64_t offeredMemory(Device device, uint64_t limit);

/// Bytes a second that it reads from its memory. Measures the CPU's, which takes about a second.
double readBandwidth(Device device, ThreadPool& pool);

}  // namespace dllama
