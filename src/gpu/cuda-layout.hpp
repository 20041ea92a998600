#pragma once

#include "gpu/cuda-weights.hpp"
#include "gpu/kernels/kernels.hpp"

/// What the backend's buffers are to the kernels.
namespace dllama::gpu {

constexpr size_t alignUp(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/// The layout of Activations::q80: values, then scales.
inline QuantRows quantRows(void* memory, int maxRows, int cols) {
    QuantRows q;
    q.groups = ceilDiv(cols, kGroup);
    q.values = static_cast<int8_t*>(memory);
    if (memory)
        q.scales = reinterpret_cast<float*>(q.values + alignUp(static_cast<size_t>(maxRows) * q.groups * kGroup));
    return q;
}
inline size_t quantBytes(int maxRows, int cols) {
    const size_t groups = ceilDiv(cols, kGroup), rows = maxRows;
    return alignUp(rows * groups * kGroup) + rows * groups * 4 * sizeof(float);
}

inline Rows rowsOf(const Activations& a) {
    return {a.f32, a.cols, quantRows(a.q80, a.maxRows, a.cols)};
}
inline const Weights& weightsOf(const Matrix& matrix) {
    return static_cast<const CudaMatrix&>(matrix).weights;
}
inline NormWeights normOf(const Norm& norm) {
    return {norm.weight.data, norm.bias.data, norm.eps, norm.kind == Norm::Kind::Layer};
}

/// The Q80 form of `a` from its f32 form, if it has one.
inline void quantize(int rows, const Activations& a, const Stream& stream) {
    if (a.q80) launchQuantize({a.f32, rows, a.cols, quantRows(a.q80, a.maxRows, a.cols)}, stream);
}

/// Whether no two tokens are of one sequence.
bool ofDifferentSequences(const Batch& batch);

}  // namespace dllama::gpu
