#include "gpu/kernels/device.cuh"

/// Kernels that touch each value once. A warp works on blocks of 32 values of one row; memory-bound, no shared memory.
namespace dllama::gpu {

namespace {

constexpr int kThreads = 256;

/// Calls body(row, col) so that each warp's lanes have the 32 columns of one block. col may be past the last column.
template <typename Body>
__device__ inline void forEachBlock(int rows, int cols, const Body& body) {
    const int blocks = (cols + 31) / 32;
    const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
    if (warp < int64_t{rows} * blocks)
        body(warp / blocks, static_cast<int>(warp % blocks) * 32 + static_cast<int>(threadIdx.x % 32));
}

int gridFor(int rows, int cols) {
    return static_cast<int>((int64_t{rows} * ceilDiv(cols, 32) * 32 + kThreads - 1) / kThreads);
}

__global__ void __launch_bounds__(kThreads) quantizeRows(QuantizeParams p) {
    letSuccessorStart();
    waitForPredecessor();
    forEachBlock(p.rows, p.cols, [&](int64_t row, int col) {
        quantizeWarp(p.out, row, col, col < p.cols ? p.x[row * p.cols + col] : 0.0f);
    });
}

__global__ void __launch_bounds__(kThreads) glu(GluParams p) {
    letSuccessorStart();
    waitForPredecessor();
    forEachBlock(p.rows, p.cols, [&](int64_t row, int col) {
        float value = 0.0f;
        if (col < p.cols) {
            const int64_t i = row * p.cols + col;
            value = p.gate ? activate(p.act, p.gate[i]) * p.up[i] : activate(p.act, p.up[i]);
            p.out.f32[i] = value;
        }
        if (p.out.q.values) quantizeWarp(p.out.q, row, col, value);
    });
}

__global__ void __launch_bounds__(kThreads) gather(GatherParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int64_t to = blockIdx.x, from = p.rows[to];
    const int tid = static_cast<int>(threadIdx.x);
    for (int i = tid; i < p.x.cols; i += kThreads) p.out.f32[to * p.x.cols + i] = p.x.f32[from * p.x.cols + i];
    if (!p.out.q.values) return;
    const int width = p.x.q.groups * kGroup, scales = p.x.q.groups * 4;
    for (int i = tid * 4; i < width; i += kThreads * 4)
        *reinterpret_cast<uint32_t*>(p.out.q.values + to * width + i) =
            *reinterpret_cast<const uint32_t*>(p.x.q.values + from * width + i);
    for (int i = tid; i < scales; i += kThreads) p.out.q.scales[to * scales + i] = p.x.q.scales[from * scales + i];
}

/// A block a row. Each thread turns 16 values of half a Q80 block into f16.
__global__ void __launch_bounds__(kThreads) stageRows(StageRowsParams p) {
    letSuccessorStart();
    waitForPredecessor();
    __shared__ float largest[kThreads / 32];
    const int64_t row = blockIdx.x;
    const int tid = static_cast<int>(threadIdx.x), blocks = p.in.groups * 4;
    const float* scales = p.in.scales + row * blocks;
    float most = 0.0f;
    for (int i = tid; i < blocks; i += kThreads) most = fmaxf(most, scales[i]);
    most = warpMax(most);
    if (tid % 32 == 0) largest[tid / 32] = most;
    __syncthreads();
    most = 0.0f;
    for (float m : largest) most = fmaxf(most, m);
    // 127 * most becomes about 2^12: far from the largest f16, and what is 2^26 times smaller keeps its precision.
    const int exponent = most > 0.0f ? 5 - ilogbf(most) : 0;
    if (tid == 0) p.rowScale[row] = ldexpf(1.0f, -exponent);
    for (int i = tid; i < blocks * 2; i += kThreads) {
        const int block = i / 2, high = i % 2;
        const float scale = ldexpf(scales[block], exponent);
        const int8_t* from = p.in.values + row * p.in.groups * kGroup;
        uint32_t pairs[8];
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const char4 word = *reinterpret_cast<const char4*>(from + quantOffset(block * 32 + high * 16 + t * 4));
            pairs[t] = packHalves(word.x * scale, word.z * scale);
            pairs[4 + t] = packHalves(word.y * scale, word.w * scale);
        }
        auto* to = reinterpret_cast<uint4*>(p.out + row * p.in.groups * kGroup + i * 16);
        to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
}

}  // namespace

void launchQuantize(const QuantizeParams& p, const Stream& stream) {
    launch(stream, quantizeRows, gridFor(p.rows, p.cols), kThreads, 0, p);
}

void launchGlu(const GluParams& p, const Stream& stream) {
    launch(stream, glu, gridFor(p.rows, p.cols), kThreads, 0, p);
}

void launchGather(const GatherParams& p, const Stream& stream) {
    launch(stream, gather, p.nRows, kThreads, 0, p);
}

void launchStageRows(const StageRowsParams& p, const Stream& stream) {
    launch(stream, stageRows, p.rows, kThreads, 0, p);
}

}  // namespace dllama::gpu
