#include <cuda_bf16.h>

#include "gpu/kernels/quant-formats.cuh"

/// What a product by a library needs: weights and activations as f16, in one order of columns.
///
/// widenWeights: a thread per lane's share of a group (kernels.hpp), 256 threads; reads 16 or 32 bytes and a scale a
/// block, writes 64 bytes. largestScale and stageAll, and the same for f32 rows: a block of 256 threads per
/// row.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 256;

/// Values 4t..4t+3 of a half block go where launchStageRows puts those of activations.
__device__ inline void storeWord(__half* half, int t, int a, int b, int c, int d, float scale) {
    *reinterpret_cast<uint32_t*>(half + 2 * t) = packHalves(a * scale, c * scale);
    *reinterpret_cast<uint32_t*>(half + 8 + 2 * t) = packHalves(b * scale, d * scale);
}
template <DType kType>
__global__ void __launch_bounds__(kThreads) widenWeights(WidenWeightsParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t group = i / 4;
    if (group >= int64_t{p.w.rows} * p.w.groups) return;
    const int t = static_cast<int>(i % 4);
    WeightChunk<kType> chunk;
    chunk.load(p.w.data + group * WeightChunk<kType>::kGroupBytes, p.w.scales + group * 4, 0, t);
    const float4 scales = widenScales(chunk.scales);
    __half* to = p.out + group * kGroup;
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            storeWord(to + b * 32 + half * 16, t, chunk.value(b, half, 0), chunk.value(b, half, 1),
                      chunk.value(b, half, 2), chunk.value(b, half, 3), component(scales, b));
}

/// Scales are not negative: their bits are in the order of their values.
__global__ void __launch_bounds__(kThreads) largestScale(StageAllParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int blocks = p.in.groups * 4;
    float most = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads)
        most = fmaxf(most, p.in.scales[int64_t{blockIdx.x} * blocks + i]);
    most = warpMax(most);
    if (threadIdx.x % 32 == 0) atomicMax(&p.scaling->largest, __float_as_int(most));
}

__global__ void __launch_bounds__(kThreads) stageAll(StageAllParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int64_t row = blockIdx.x;
    const int blocks = p.in.groups * 4;
    // 127 times the largest scale becomes about 2^12: far from the largest f16, and rows 2^26 times smaller keep their
    // precision.
    const float largest = __int_as_float(p.scaling->largest);
    const int exponent = largest > 0.0f ? 5 - ilogbf(largest) : 0;
    if (row == 0 && threadIdx.x == 0) p.scaling->undo = ldexpf(1.0f, -exponent);
    const float* scales = p.in.scales + row * blocks;
    const int8_t* from = p.in.values + row * p.in.groups * kGroup;
    for (int i = static_cast<int>(threadIdx.x); i < blocks * 2; i += kThreads) {
        const int block = i / 2, half = i % 2;
        const float scale = ldexpf(scales[block], exponent);
        __half* to = p.out + row * p.in.groups * kGroup + i * 16;
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const char4 word = *reinterpret_cast<const char4*>(from + quantOffset(block * 32 + half * 16 + t * 4));
            storeWord(to, t, word.x, word.y, word.z, word.w, scale);
        }
    }
}

__global__ void __launch_bounds__(kThreads) largestValue(StageFloatsParams p) {
    letSuccessorStart();
    waitForPredecessor();
    float most = 0.0f;
    for (int i = static_cast<int>(threadIdx.x); i < p.cols; i += kThreads)
        most = fmaxf(most, fabsf(p.in[int64_t{blockIdx.x} * p.cols + i]));
    most = warpMax(most);
    if (threadIdx.x % 32 == 0) atomicMax(&p.scaling->largest, __float_as_int(most));
}

template <typename Half>
__global__ void __launch_bounds__(kThreads) stageFloats(StageFloatsParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int64_t row = blockIdx.x;
    const int width = p.groups * kGroup;
    // The largest value becomes about 2^12, as above.
    const float largest = __int_as_float(p.scaling->largest);
    const int exponent = largest > 0.0f ? min(max(12 - ilogbf(largest), -100), 100) : 0;
    if (row == 0 && threadIdx.x == 0) p.scaling->undo = ldexpf(1.0f, -exponent);
    const float factor = ldexpf(1.0f, exponent);
    Half *to = static_cast<Half*>(p.out) + row * width, *left = to + int64_t{p.rows} * width;
    for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) {
        const float x = i < p.cols ? p.in[row * p.cols + i] * factor : 0.0f;
        const Half rounded(x);
        to[i] = rounded;
        left[i] = Half(x - static_cast<float>(rounded));
    }
}

__global__ void __launch_bounds__(kThreads) addBias(AddBiasParams p) {
    letSuccessorStart();
    waitForPredecessor();
    for (int i = static_cast<int>(threadIdx.x); i < p.cols; i += kThreads)
        p.out[int64_t{blockIdx.x} * p.outCols + i] += p.bias[i];
}

}  // namespace

void launchWidenWeights(const WidenWeightsParams& p, const Stream& stream) {
    const int64_t shares = int64_t{p.w.rows} * p.w.groups * 4;
    withQuantType(p.w.dtype, [&]<DType kType>() {
        launch(stream, widenWeights<kType>, static_cast<unsigned>((shares + kThreads - 1) / kThreads), kThreads, 0, p);
    });
}

void launchStageAll(const StageAllParams& p, const Stream& stream) {
    check(cudaMemsetAsync(p.scaling, 0, sizeof(Scaling), stream.handle), "staging of activations");
    launch(stream, largestScale, p.rows, kThreads, 0, p);
    launch(stream, stageAll, p.rows, kThreads, 0, p);
}

void launchStageFloats(const StageFloatsParams& p, const Stream& stream) {
    check(cudaMemsetAsync(p.scaling, 0, sizeof(Scaling), stream.handle), "staging of activations");
    launch(stream, largestValue, p.rows, kThreads, 0, p);
    launch(stream, p.dtype == DType::BF16 ? stageFloats<__nv_bfloat16> : stageFloats<__half>, p.rows, kThreads, 0, p);
}

void launchAddBias(const AddBiasParams& p, const Stream& stream) {
    launch(stream, addBias, p.rows, kThreads, 0, p);
}

}  // namespace dllama::gpu
