#include "backend/backend.hpp"

namespace dllama {

KvLayer Backend::allocateKvLayer(DType dtype, int nBlocks, int nKvHeads, int headDim) {
    const size_t values = size_t{kKvBlockPositions} * nBlocks * nKvHeads * headDim;
    const size_t bytes = storedBytes(dtype, static_cast<int64_t>(values));
    KvLayer kv{dtype, nBlocks, nKvHeads, headDim, nullptr, nullptr, allocate(2 * bytes)};
    kv.k = kv.memory.get();
    kv.v = kv.memory.get() + bytes;
    return kv;
}

KvLayer Backend::allocateLatentLayer(DType dtype, int nBlocks, int rowDim) {
    const int64_t values = int64_t{kKvBlockPositions} * nBlocks * rowDim;
    KvLayer kv{dtype, nBlocks, 1, rowDim, nullptr, nullptr, allocate(storedBytes(dtype, values))};
    kv.k = kv.memory.get();
    return kv;
}

Routing Backend::allocateRouting(int maxRows, int topK) {
    static_assert(sizeof(int32_t) == sizeof(float));
    const size_t bytes = sizeof(float) * maxRows * topK;
    Routing routing{topK, nullptr, nullptr, allocate(2 * bytes)};
    routing.experts = reinterpret_cast<int32_t*>(routing.memory.get());
    routing.weights = reinterpret_cast<float*>(routing.memory.get() + bytes);
    return routing;
}

}  // namespace dllama
