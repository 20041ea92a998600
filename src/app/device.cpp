#include "app/device.hpp"

#include <fmt/format.h>

#include "base/cpu-features.hpp"
#include "base/errors.hpp"
#include "cpu/cpu-backend.hpp"
#ifdef DLLAMA_HAS_CUDA
#include "gpu/cuda-backend.hpp"
#endif

namespace dllama {

namespace {

#ifdef DLLAMA_HAS_CUDA
/// A GPU that holds `bytes`, or null with the reason on `status`.
std::unique_ptr<Backend> gpuWithRoom(int index, size_t bytes, std::FILE* status) {
    if (cudaDevices().empty()) return nullptr;
    try {
        auto backend = makeCudaBackend({.gpuIndex = index});
        const size_t free = cudaFreeMemory(index);
        if (free >= bytes) return backend;
        fmt::print(status, "🧠 GPU {} has {} MB free, {} MB are needed: computing on the CPU\n", index, free >> 20,
                   bytes >> 20);
    } catch (const CudaError& error) {
        fmt::print(status, "🧠 {}\n", error.what());
    }
    return nullptr;
}
#endif

}  // namespace

std::unique_ptr<Backend> openDevice(const DeviceFlags& flags, ThreadPool& pool, size_t bytes, std::FILE* status) {
    if (flags.device != "auto" && flags.device != "cpu" && flags.device != "cuda")
        throw ConfigError("--device {} is not known (auto, cpu, cuda)", flags.device);
    const bool cpu = flags.device == "cpu";
    if (cpu && flags.gpuIndex >= 0) throw ConfigError("--gpu-index {} with --device cpu", flags.gpuIndex);
#ifdef DLLAMA_HAS_CUDA
    const int index = flags.gpuIndex < 0 ? 0 : flags.gpuIndex;
    if (flags.device == "cuda" || flags.gpuIndex >= 0) return makeCudaBackend({.gpuIndex = index});
    if (!cpu)
        if (auto backend = gpuWithRoom(index, bytes, status)) return backend;
#else
    if (!cpu && (flags.device == "cuda" || flags.gpuIndex >= 0))
        throw ConfigError("this build has no CUDA backend: build with make BUILD_CUDA=1");
    static_cast<void>(bytes);
#endif
    const Isa isa = chooseIsa();
    fmt::print(status, "🧠 CPU: {} ({} threads)\n", cpuFeatureNames(), pool.nThreads());
    return makeCpuBackend(pool, isa);
}

}  // namespace dllama
