#include "gpu/kernels/quant-formats.cuh"

/// From the layouts of files to ours, at load time and for embedding rows.
namespace dllama::gpu {

namespace {

/// One thread a (row, block of 32). Reads the stored block, writes its words to their places; threads of padding blocks
/// write zeros.
template <DType kType>
__global__ void repackQuant(RepackParams p) {
    using Chunk = WeightChunk<kType>;
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int blocks = p.groups * 4;
    if (index >= int64_t{p.rows} * blocks) return;
    const int64_t row = index / blocks;
    const int block = static_cast<int>(index % blocks);
    const uint8_t* from =
        block < p.cols / 32 ? p.stored + (row * (p.cols / 32) + block) * Chunk::kStoredBytes : nullptr;
    p.scales[index] = from ? __ushort_as_half(read16(from)) : __half{};
    Chunk::repack(from, p.data + (row * p.groups + block / 4) * Chunk::kGroupBytes, block % 4);
}

/// One thread a value of a float matrix; padding columns are already zero.
__global__ void repackFloat(RepackParams p) {
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (index >= int64_t{p.rows} * p.cols) return;
    const int64_t to = index / p.cols * p.groups * kGroup + index % p.cols;
    if (p.dtype == DType::F32)
        reinterpret_cast<uint32_t*>(p.data)[to] = reinterpret_cast<const uint32_t*>(p.stored)[index];
    else
        reinterpret_cast<uint16_t*>(p.data)[to] = reinterpret_cast<const uint16_t*>(p.stored)[index];
}

/// One thread a value.
template <DType kType>
__global__ void widen(WidenParams p) {
    waitForPredecessor();
    letSuccessorStart();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    if constexpr (kType == DType::F32) {
        p.out[i] = reinterpret_cast<const float*>(p.stored)[i];
    } else if constexpr (kType == DType::F16) {
        p.out[i] = __half2float(reinterpret_cast<const __half*>(p.stored)[i]);
    } else if constexpr (kType == DType::BF16) {
        p.out[i] = __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(p.stored)[i]) << 16);
    } else {
        const uint8_t* block = p.stored + i / 32 * WeightChunk<kType>::kStoredBytes;
        p.out[i] = WeightChunk<kType>::storedValue(block, static_cast<int>(i % 32)) *
                   __half2float(__ushort_as_half(read16(block)));
    }
}

unsigned blocksFor(int64_t threads) {
    return static_cast<unsigned>((threads + 255) / 256);
}

}  // namespace

bool hasDeviceCode() {
    cudaFuncAttributes attributes;
    const bool found = cudaFuncGetAttributes(&attributes, widen<DType::F32>) == cudaSuccess;
    cudaGetLastError();
    return found;
}

void launchRepack(const RepackParams& p, const Stream& stream) {
    Stream plain = stream;
    plain.overlap = false;
    if (isQuantized(p.dtype))
        withQuantType(p.dtype, [&]<DType kType>() {
            launch(plain, repackQuant<kType>, blocksFor(int64_t{p.rows} * p.groups * 4), 256, 0, p);
        });
    else
        launch(plain, repackFloat, blocksFor(int64_t{p.rows} * p.cols), 256, 0, p);
}

void launchWiden(const WidenParams& p, const Stream& stream) {
    const auto start = [&](auto kernel) { launch(stream, kernel, blocksFor(p.n), 256, 0, p); };
    switch (p.dtype) {
        case DType::F32:
            return start(widen<DType::F32>);
        case DType::F16:
            return start(widen<DType::F16>);
        case DType::BF16:
            return start(widen<DType::BF16>);
        default:
            withQuantType(p.dtype, [&]<DType kType>() { start(widen<kType>); });
    }
}

size_t quantGroupBytes(DType dtype) {
    return withQuantType(dtype, []<DType kType>() -> size_t { return WeightChunk<kType>::kGroupBytes; });
}

}  // namespace dllama::gpu
