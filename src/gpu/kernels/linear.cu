#include "gpu/kernels/bulk-copy.cuh"

/// One token through a quantised matrix. Grid: rows / 8; 128 threads, each warp two rows, no shared memory. Each weight
/// byte is read once, the activations from L1. The first weights are requested before the predecessor has finished.
///
/// From 9.0 on, linearStaged: grid rows / 8 (or 4, of long rows); the four warps share all rows of the block and each
/// takes a quarter of the columns. Shared memory: the rows, brought by the copy engine.
namespace dllama::gpu {

namespace {

constexpr int kWarps = 4, kRowsOfWarp = 2, kDepth = 4;

template <DType kType>
__global__ void __launch_bounds__(kWarps * 32) linear(LinearParams p) {
    letSuccessorStart();
    const int warp = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x / 32);
    const int row0 = warp * kRowsOfWarp, lane = static_cast<int>(threadIdx.x % 32);
    WeightRow rows[kRowsOfWarp];
    for (int r = 0; r < kRowsOfWarp; r++) rows[r] = weightRow<kType>(p.w, min(row0 + r, p.w.rows - 1));
    float sums[kRowsOfWarp];
    dotRows<kType, kRowsOfWarp, kDepth>(rows, p.w.groups, p.in.q.values, p.in.q.scales, sums,
                                        [] { waitForPredecessor(); });
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; r++) {
        const int row = row0 + r;
        if (lane != r || row >= p.w.rows) continue;
        float value = sums[r] + (p.w.bias ? p.w.bias[row] : 0.0f);
        if (p.accumulate) value += p.out[row];
        p.out[row] = value;
    }
}

/// The block's rows are all asked for at once.
template <DType kType, int kRows>
__global__ void __launch_bounds__(kWarps * 32, 8) linearStaged(LinearParams p) {
    extern __shared__ __align__(128) uint8_t staged[];
    __shared__ Arrival arrival;
    __shared__ float parts[kWarps][kRows];
    using Staged = StagedRows<kType, kRows>;
    letSuccessorStart();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
    const int row0 = static_cast<int>(blockIdx.x) * kRows, groups = p.w.groups;
    if (tid == 0) {
        initArrival(&arrival);
        expectBytes(&arrival, Staged::bytes(groups));
        Staged::ask(staged, p.w, row0, &arrival);
    }
    __syncthreads();
    waitForPredecessor();
    waitArrival(&arrival, 0);
    float sums[kRows] = {};
    Staged::dot(staged, groups, warp * 8, kWarps * 8, p.in.q, sums);
    const float sum = sumRows(sums);
    if (lane % (32 / kRows) == 0) parts[warp][lane / (32 / kRows)] = sum;
    __syncthreads();
    if (tid >= kRows) return;
    const int row = row0 + tid;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; w++) value += parts[w][tid];
    value = value * WeightChunk<kType>::kFactor + (p.w.bias ? p.w.bias[row] : 0.0f);
    if (p.accumulate) value += p.out[row];
    p.out[row] = value;
}

/// Whether launched: rows must fill the blocks.
template <DType kType, int kRows>
bool launchStaged(const LinearParams& p, const Stream& stream) {
    const int bytes = StagedRows<kType, kRows>::bytes(p.w.groups);
    if (stream.computeCapability < 90 || p.w.rows % kRows != 0 || bytes > 36 * 1024) return false;
    launch(stream, linearStaged<kType, kRows>, p.w.rows / kRows, kWarps * 32, bytes, p);
    return true;
}

}  // namespace

void launchLinear(const LinearParams& p, const Stream& stream) {
    withQuantType(p.w.dtype, [&]<DType kType>() {
        if (launchStaged<kType, 8>(p, stream) || launchStaged<kType, 4>(p, stream)) return;
        launch(stream, linear<kType>, ceilDiv(p.w.rows, kWarps * kRowsOfWarp), kWarps * 32, 0, p);
    });
}

}  // namespace dllama::gpu
