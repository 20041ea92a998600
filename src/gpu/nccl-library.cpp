#include "gpu/nccl-library.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <optional>

namespace dllama::gpu {

namespace {

/// Communicators that do not block came with this one.
constexpr int kOldestVersion = 21400;

std::optional<NcclLibrary> load() {
    // Sums inside the switch (NVLS) reserve multicast memory, which not every host or container has, and gain nothing
    // for sums as small as ours. Who set the variable knows better.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return std::nullopt;
    NcclLibrary nccl;
    bool complete = true;
    const auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        complete = complete && function != nullptr;
    };
    find(nccl.getVersion, "ncclGetVersion");
    find(nccl.getErrorString, "ncclGetErrorString");
    find(nccl.getUniqueId, "ncclGetUniqueId");
    find(nccl.commInitRankConfig, "ncclCommInitRankConfig");
    find(nccl.commGetAsyncError, "ncclCommGetAsyncError");
    find(nccl.commAbort, "ncclCommAbort");
    find(nccl.allReduce, "ncclAllReduce");
    int version = 0;
    if (!complete || nccl.getVersion(&version) != ncclSuccess || version < kOldestVersion) return std::nullopt;
    nccl.version = fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
    return nccl;
}

}  // namespace

const NcclLibrary* ncclLibrary() {
    static const std::optional<NcclLibrary> library = load();
    return library ? &*library : nullptr;
}

}  // namespace dllama::gpu
