#include "app/device.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "base/cpu-features.hpp"
#include "base/errors.hpp"
#include "cpu/cpu-backend.hpp"
#include "cpu/read-bandwidth.hpp"
#ifdef DLLAMA_HAS_CUDA
#include "gpu/cuda-backend.hpp"
#include "gpu/cuda-collectives.hpp"
#endif

namespace dllama {

namespace {

#ifdef DLLAMA_HAS_CUDA
/// Buffers of operations and of NCCL, recorded steps, fragments.
constexpr size_t kGpuReserve = size_t{1} << 30;
/// ... of small GPUs, in parts of what is free.
constexpr size_t kGpuReservePart = 8;

/// True if this GPU serves and has `bytes` free; else the reason goes to `status`.
bool hasRoom(int gpu, size_t bytes, std::FILE* status) {
    if (cudaDevices().empty()) return false;
    try {
        makeCudaBackend({.gpuIndex = gpu});
        const size_t free = cudaFreeMemory(gpu);
        if (free >= bytes) return true;
        fmt::print(status, "🧠 GPU {} has {} MB free, {} MB are needed: computing on the CPU\n", gpu, free >> 20,
                   bytes >> 20);
    } catch (const CudaError& error) {
        fmt::print(status, "🧠 {}\n", error.what());
    }
    return false;
}
#endif

}  // namespace

std::vector<int> parseGpuList(const std::string& text) {
    std::vector<int> gpus;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        int gpu = 0;
        const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), gpu);
        if (error != std::errc() || end != part.data() + part.size() || gpu < 0)
            throw ConfigError("--gpu-index {}: \"{}\" is not the number of a GPU (0, 1, ...)", text, part);
        if (std::find(gpus.begin(), gpus.end(), gpu) != gpus.end())
            throw ConfigError("--gpu-index {}: GPU {} is named twice", text, gpu);
        gpus.push_back(gpu);
    }
    if (gpus.empty() || text.ends_with(',')) throw ConfigError("--gpu-index {}: a number is missing", text);
    return gpus;
}

std::vector<Device> chooseDevices(const DeviceFlags& flags, size_t bytes, std::FILE* status) {
    if (flags.device != "auto" && flags.device != "cpu" && flags.device != "cuda")
        throw ConfigError("--device {} is not known (auto, cpu, cuda)", flags.device);
    std::vector<Device> devices;
    if (!flags.gpuIndex.empty())
        for (const int gpu : parseGpuList(flags.gpuIndex)) devices.push_back({gpu});
    if (flags.device == "cpu") {
        if (!devices.empty()) throw ConfigError("--gpu-index {} with --device cpu", flags.gpuIndex);
        return {Device{}};
    }
    if (flags.device == "cuda" && devices.empty()) devices.push_back({0});
#ifdef DLLAMA_HAS_CUDA
    // Loading a kernel when it is first used may wait for the device, and the device for another rank's kernel, which
    // this process has yet to load.
    if (devices.size() > 1) setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    if (devices.empty() && hasRoom(0, bytes, status)) devices.push_back({0});
    const int nGpus = static_cast<int>(cudaDevices().size());
    for (const Device device : devices)
        if (nGpus > 0 && device.gpu >= nGpus)
            throw ConfigError("--gpu-index {}: there is no GPU {}, this machine has {}", flags.gpuIndex, device.gpu,
                              nGpus);
#else
    if (!devices.empty()) throw ConfigError("this build has no CUDA backend: build with make BUILD_CUDA=1");
    static_cast<void>(bytes), static_cast<void>(status);
#endif
    if (devices.empty()) devices.push_back({});
    return devices;
}

std::unique_ptr<Backend> openDevice(Device device, ThreadPool& pool, std::FILE* status) {
#ifdef DLLAMA_HAS_CUDA
    if (device.isGpu()) {
        auto backend = makeCudaBackend({.gpuIndex = device.gpu});
        fmt::print(status, "🧠 {}\n", backend->name());
        return backend;
    }
#endif
    DLLAMA_CHECK(!device.isGpu());
    const Isa isa = chooseIsa();
    fmt::print(status, "🧠 CPU: {} ({} threads)\n", cpuFeatureNames(), pool.nThreads());
    return makeCpuBackend(pool, isa);
}

std::unique_ptr<DeviceCollectives> openCollectives(Device device) {
#ifdef DLLAMA_HAS_CUDA
    if (device.isGpu()) return makeCudaCollectives(device.gpu);
#endif
    static_cast<void>(device);
    return nullptr;
}

uint64_t offeredMemory(Device device, uint64_t limit) {
#ifdef DLLAMA_HAS_CUDA
    if (device.isGpu()) {
        const size_t free = cudaFreeMemory(device.gpu);
        const uint64_t offered = free - std::min(kGpuReserve, free / kGpuReservePart);
        return limit == 0 ? offered : std::min(limit, offered);
    }
#endif
    static_cast<void>(device);
    return limit;
}

double readBandwidth(Device device, ThreadPool& pool) {
#ifdef DLLAMA_HAS_CUDA
    if (device.isGpu()) return cudaMemoryBandwidth(device.gpu);
#endif
    static_cast<void>(device);
    return measureReadBandwidth(pool);
}

}  // namespace dllama
