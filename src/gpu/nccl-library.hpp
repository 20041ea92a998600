#pragma once

#include <nccl.h>

#include <string>

namespace dllama::gpu {

/// The functions of NCCL that are used here. The library is loaded when it is first asked for, not linked: it is a
/// quarter of a gigabyte that few machines have, and one program shall start on all of them.
struct NcclLibrary {
    decltype(&::ncclGetVersion) getVersion;
    decltype(&::ncclGetErrorString) getErrorString;
    decltype(&::ncclGetUniqueId) getUniqueId;
    decltype(&::ncclCommInitRankConfig) commInitRankConfig;
    decltype(&::ncclCommGetAsyncError) commGetAsyncError;
    decltype(&::ncclCommAbort) commAbort;
    decltype(&::ncclAllReduce) allReduce;
    std::string version;  // "2.28.9"
};

/// Null if this machine has no libnccl.so.2 where its loader looks, or one that is too old.
const NcclLibrary* ncclLibrary();

}  // namespace dllama::gpu
