#pragma once

#include <mutex>
#include <vector>

#include "gpu/cuda-check.hpp"
#include "gpu/kernels/kernels.hpp"

/// Weights on the GPU, and how they get there.
namespace dllama::gpu {

struct CudaMatrix final : Matrix {
    Weights weights;
    DeviceMemory memory;
};

struct CudaExperts final : ExpertSet {
    ExpertWeights weights;
    int topSlot = 0;
    DeviceMemory memory;
};

/// Copies tensors through page-locked memory and repacks them on the GPU. Thread-safe: each caller borrows a lane with
/// a stream and buffers of its own.
class WeightLoader {
  public:
    explicit WeightLoader(int gpuIndex);
    ~WeightLoader();

    std::unique_ptr<CudaMatrix> matrix(const TensorSource& source, const MatrixSpec& spec);
    std::unique_ptr<CudaExperts> experts(const TensorSource& source, const std::vector<ExpertSpec>& specs);
    /// The slice's values as f32 to `to`.
    void floats(const TensorSource& source, const TensorSlice& slice, float* to);

  private:
    struct Lane;
    /// Repacks the stacked slices to weights.data and weights.scales.
    void fill(const TensorSource& source, const MatrixSpec& spec, const Weights& weights);
    /// Calls use(lane, device copy of the rows' bytes, first row, rows) for as many rows at a time as fit.
    template <typename Use>
    void stream(const TensorSource& source, const TensorSlice& slice, const Use& use);
    std::unique_ptr<Lane> borrow();

    int gpuIndex_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Lane>> idle_;
};

}  // namespace dllama::gpu
