#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "backend/backend.hpp"
#include "tensor/blocks.hpp"
#include "tensor/half.hpp"

/// What the files of the reference backend share.
namespace dllama::reference {

struct PlainMatrix final : Matrix {
    std::vector<float> values;  // (rows, cols)
    std::vector<float> bias;    // (rows), or empty
};

inline const PlainMatrix& plain(const Matrix& matrix) {
    return static_cast<const PlainMatrix&>(matrix);
}

/// out (matrix.rows) = matrix x + bias; x is rounded to Q80 first if the matrix is quantised.
inline std::vector<float> multiply(const PlainMatrix& matrix, const float* x) {
    std::vector<float> input(x, x + matrix.cols);
    if (isQuantized(matrix.dtype)) {
        std::vector<BlockQ80> blocks(input.size() / kBlockValues);
        quantizeQ80(x, blocks.data(), matrix.cols);
        dequantize(DType::Q80, blocks.data(), input.data(), matrix.cols);
    }
    std::vector<float> out(static_cast<size_t>(matrix.rows));
    for (int64_t r = 0; r < matrix.rows; r++) {
        double sum = matrix.bias.empty() ? 0.0 : matrix.bias[r];
        for (int64_t c = 0; c < matrix.cols; c++)
            sum += static_cast<double>(matrix.values[r * matrix.cols + c]) * input[c];
        out[r] = static_cast<float>(sum);
    }
    return out;
}

inline void normalize(const Norm& norm, const float* x, float* out, int n) {
    double mean = 0.0, square = 0.0;
    if (norm.kind == Norm::Kind::Layer) mean = std::accumulate(x, x + n, 0.0) / n;
    for (int i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / std::sqrt(square / n + norm.eps);
    for (int i = 0; i < n; i++) {
        const double bias = norm.kind == Norm::Kind::Layer ? norm.bias.data[i] : 0.0;
        out[i] = static_cast<float>((x[i] - mean) * scale * norm.weight.data[i] + bias);
    }
}

inline void storeKv(const KvLayer& kv, void* base, size_t index, float value) {
    if (kv.dtype == DType::F32)
        static_cast<float*>(base)[index] = value;
    else
        static_cast<uint16_t*>(base)[index] = f32ToF16(value);
}

inline float loadKv(const KvLayer& kv, const void* base, size_t index) {
    return kv.dtype == DType::F32 ? static_cast<const float*>(base)[index]
                                  : f16ToF32(static_cast<const uint16_t*>(base)[index]);
}

/// Where the head `head` of the cached position begins in k or v.
inline size_t kvIndex(const StepInputs& step, const KvLayer& kv, int sequence, int position, int head) {
    const int block = step.blockTables[sequence * step.maxBlocks + position / kKvBlockPositions];
    const size_t row = (static_cast<size_t>(block) * kv.nKvHeads + head) * kKvBlockPositions;
    return (row + position % kKvBlockPositions) * kv.headDim;
}

/// One head of `token`, in place.
inline void rotate(const StepInputs& step, const Rope& rope, int token, float* head) {
    const int half = rope.rotaryDim / 2;
    for (int part = 0; part < rope.parts; part++, head += rope.rotaryDim) {
        const size_t angles = static_cast<size_t>(step.ropePositions[part * step.nTokens + token]) * half;
        for (int j = 0; j < half; j++) {
            const bool interleaved = rope.style == Rope::Style::Interleaved;
            float& a = head[interleaved ? 2 * j : j];
            float& b = head[interleaved ? 2 * j + 1 : j + half];
            const float c = rope.cos.data[angles + j], s = rope.sin.data[angles + j];
            const float turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
    }
}

}  // namespace dllama::reference
