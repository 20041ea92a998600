#pragma once

#include "base/errors.hpp"
#include "gpu/cuda-backend.hpp"
#include "gpu/cuda-layout.hpp"
#include "gpu/graph-cache.hpp"
#include "gpu/scratch-arena.hpp"

namespace dllama::gpu {

/// What all operations of one GPU share.
struct CudaCore {
    CudaOptions options;
    Stream stream;
    GraphCache graphs{stream};
    ScratchArena scratch{[this] {
        DLLAMA_CHECK(!graphs.recording());
        check(cudaStreamSynchronize(stream.handle), "scratch memory");
        graphs.clear();
    }};
};

}  // namespace dllama::gpu
