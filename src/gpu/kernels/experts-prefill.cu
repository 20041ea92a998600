#include "gpu/kernels/device.cuh"

/// What surrounds the grouped products of many tokens. sortExperts: one block of 1024 threads; shared memory: counts
/// and places of 512 experts. mixExperts: grid (tokens), 256 threads; reads topK rows of y and one of out, writes out.
namespace dllama::gpu {

namespace {

constexpr int kSortThreads = 1024, kMixThreads = 256;

__global__ void __launch_bounds__(kSortThreads) sortExperts(SortExpertsParams p) {
    __shared__ int counts[kMaxExperts], next[kMaxExperts];
    letSuccessorStart();
    waitForPredecessor();
    const int tid = static_cast<int>(threadIdx.x), pairs = p.nTokens * p.topK;
    for (int e = tid; e < kMaxExperts; e += kSortThreads) counts[e] = 0;
    __syncthreads();
    for (int i = tid; i < pairs; i += kSortThreads) atomicAdd(&counts[p.experts[i]], 1);
    __syncthreads();
    if (tid == 0) {
        int row = 0, tiles = 0;
        for (int e = 0; e < p.nExperts; e++) {
            next[e] = row;
            if (p.slots[e] < 0) continue;
            for (int begin = 0; begin < counts[e]; begin += kExpertTileRows)
                p.tiles[tiles++] = {p.slots[e], row + begin, min(kExpertTileRows, counts[e] - begin), 0};
            row += counts[e];
        }
        *p.nTiles = tiles;
    }
    __syncthreads();
    for (int i = tid; i < pairs; i += kSortThreads) {
        const int expert = p.experts[i];
        if (p.slots[expert] < 0) {
            p.rowOf[i] = -1;
            continue;
        }
        const int row = atomicAdd(&next[expert], 1);
        p.rowOf[i] = row;
        p.rowToken[row] = i / p.topK;
    }
}

__global__ void __launch_bounds__(kMixThreads) mixExperts(MixExpertsParams p) {
    letSuccessorStart();
    waitForPredecessor();
    const int64_t token = blockIdx.x;
    for (int col = static_cast<int>(threadIdx.x); col < p.cols; col += kMixThreads) {
        float sum = 0.0f;
        for (int k = 0; k < p.topK; k++) {
            const int64_t row = p.rowOf[token * p.topK + k];
            if (row >= 0) sum += p.weights[token * p.topK + k] * p.y[row * p.cols + col];
        }
        p.out[token * p.cols + col] += sum;
    }
}

}  // namespace

void launchSortExperts(const SortExpertsParams& p, const Stream& stream) {
    launch(stream, sortExperts, 1, kSortThreads, 0, p);
}

void launchMixExperts(const MixExpertsParams& p, const Stream& stream) {
    launch(stream, mixExperts, p.nTokens, kMixThreads, 0, p);
}

}  // namespace dllama::gpu
