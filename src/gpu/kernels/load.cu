#include "gpu/kernels/device.cuh"

/// From the layouts of files to ours, at load time and for embedding rows.
namespace dllama::gpu {

namespace {

/// Unaligned 16-bit read: blocks of files are 18 and 34 bytes.
__device__ inline uint16_t read16(const uint8_t* p) {
    return static_cast<uint16_t>(p[0] | (p[1] << 8));
}

/// One thread a (row, block of 32). Reads the stored block, writes its words to their places; threads of padding blocks
/// write zeros.
__global__ void repackQuant(RepackParams p) {
    const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int blocks = p.groups * 4;
    if (index >= int64_t{p.rows} * blocks) return;
    const int64_t row = index / blocks;
    const int block = static_cast<int>(index % blocks);
    const bool real = block < p.cols / 32;
    const bool q40 = p.dtype == DType::Q40;
    const uint8_t* from = p.stored + (row * (p.cols / 32) + block) * (q40 ? 18 : 34);
    p.scales[index] = real ? __ushort_as_half(read16(from)) : __half{};
    const int64_t group = row * p.groups + block / 4;
    for (int word = 0; word < (q40 ? 4 : 8); word++) {
        uint32_t bits = 0;
        if (real)
            for (int i = 0; i < 4; i++) bits |= static_cast<uint32_t>(from[2 + 4 * word + i]) << (8 * i);
        if (q40) {
            // Adding 8 modulo 16 makes the offset nibbles signed.
            if (real) bits ^= 0x88888888u;
            reinterpret_cast<uint32_t*>(p.data)[group * 16 + word * 4 + block % 4] = bits;
        } else {
            *reinterpret_cast<uint32_t*>(p.data + row * p.groups * kGroup + quantOffset(block * 32 + word * 4)) = bits;
        }
    }
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
__global__ void widen(WidenParams p) {
    waitForPredecessor();
    letSuccessorStart();
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.n) return;
    const int64_t block = i / 32;
    const int j = static_cast<int>(i % 32);
    float value = 0.0f;
    switch (p.dtype) {
        case DType::F32:
            value = reinterpret_cast<const float*>(p.stored)[i];
            break;
        case DType::F16:
            value = __half2float(reinterpret_cast<const __half*>(p.stored)[i]);
            break;
        case DType::BF16:
            value = __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(p.stored)[i]) << 16);
            break;
        case DType::Q80: {
            const uint8_t* from = p.stored + block * 34;
            value = static_cast<int8_t>(from[2 + j]) * __half2float(__ushort_as_half(read16(from)));
            break;
        }
        case DType::Q40: {
            const uint8_t* from = p.stored + block * 18;
            const int nibble = j < 16 ? from[2 + j] & 15 : from[2 + j - 16] >> 4;
            value = static_cast<float>(nibble - 8) * __half2float(__ushort_as_half(read16(from)));
            break;
        }
    }
    p.out[i] = value;
}

unsigned blocksFor(int64_t threads) {
    return static_cast<unsigned>((threads + 255) / 256);
}

}  // namespace

bool hasDeviceCode() {
    cudaFuncAttributes attributes;
    const bool found = cudaFuncGetAttributes(&attributes, widen) == cudaSuccess;
    cudaGetLastError();
    return found;
}

void launchRepack(const RepackParams& p, const Stream& stream) {
    Stream plain = stream;
    plain.overlap = false;
    if (isQuantized(p.dtype))
        launch(plain, repackQuant, blocksFor(int64_t{p.rows} * p.groups * 4), 256, 0, p);
    else
        launch(plain, repackFloat, blocksFor(int64_t{p.rows} * p.cols), 256, 0, p);
}

void launchWiden(const WidenParams& p, const Stream& stream) {
    launch(stream, widen, blocksFor(p.n), 256, 0, p);
}

}  // namespace dllama::gpu
