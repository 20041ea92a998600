#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu-features.hpp"
#include "tensor/dtype.hpp"

/// The inner loops of the CPU backend, one table for each instruction set (src/cpu/isa). They take pointers and sizes
/// only, never throw, and give each output element the same bits whatever else is computed in the same call.
namespace dllama {

/// A weight matrix as the kernels read it.
///
/// Quantised types lie in groups of `groupRows` rows, so that one int32 lane of a vector belongs to one row. A group is
/// a sequence of blocks (the block's columns of its rows); with R = groupRows a block is
///     R x headBytes of the type: each row's head (scales)
///     the rest of each row's stored block in words of 4 bytes: word 0 of R rows, word 1 of R rows, ...
/// The last group is filled with rows of zeros.
///
/// F32, F16 and BF16 are read where they lie; `rows` has a pointer to each row.
struct WeightView {
    const std::byte* packed = nullptr;
    const std::byte* const* rows = nullptr;
    int64_t nRows = 0;
    int64_t cols = 0;
};

/// 32 activations in Q80. The scale has been rounded to f16, as in a stored block; `sum` is that of the values, for
/// weights that are stored with an offset.
struct InputBlock {
    int8_t values[32];
    float scale;
    int32_t sum;
};

/// Activations as the kernels read them: (rows, cols) floats, or (rows, cols / 32) blocks for quantised weights.
struct InputView {
    const float* f32 = nullptr;
    const InputBlock* blocks = nullptr;
    int64_t cols = 0;
};

/// One block of the KV cache, as floats: k is (32, keyDim), v the first valueDim of each of 32 rows of valueStride
/// values (those of k itself in a latent cache); the first of their positions is `position`.
struct KvBlockView {
    const float* k = nullptr;
    const float* v = nullptr;
    int keyDim = 0;
    int valueDim = 0;
    int valueStride = 0;
    int position = 0;
};

/// One query in the middle of its softmax over the cache. What it has seen so far: the largest score, the sum of
/// exp(score - largest), and the sum of exp(score - largest) * v, valueDim values.
struct QueryState {
    const float* q = nullptr;
    int contextLength = 0;
    float largest = 0.0f;
    float sum = 0.0f;
    float* mixed = nullptr;
};

struct CpuKernels {
    /// Rows of a packed group: 4, 8 or 16.
    int groupRows;

    /// Products of the rows [row, row + nRows) with the inputs inputRows[0..nInputs): out[i * stride + r] is row
    /// row + r times input i. For quantised weights row is a multiple of groupRows, and nRows is rounded up to one:
    /// out must have room for that.
    using Multiply = void (*)(const WeightView& w, int64_t row, int nRows, const InputView& x, const int32_t* inputRows,
                              int nInputs, float* out, int stride) noexcept;
    struct MultiplyTable {
        Multiply of[kNDTypes];  // by DType
    } multiply;

    /// n values (a multiple of 32) to Q80, rounded as quantizeQ80 does.
    void (*quantize)(const float* x, int64_t n, InputBlock* out) noexcept;

    /// out = act(gate) * up, n values. act(up) alone if gate is null. out may be either input.
    void (*silu)(const float* gate, const float* up, float* out, int64_t n) noexcept;
    void (*geluTanh)(const float* gate, const float* up, float* out, int64_t n) noexcept;

    /// The sum of exp((x - largest) * scale), n values.
    float (*sumExp)(const float* x, int64_t n, float largest, float scale) noexcept;

    void (*f32ToF16)(const float* x, uint16_t* out, int64_t n) noexcept;
    void (*f16ToF32)(const uint16_t* x, float* out, int64_t n) noexcept;

    /// Lets each query see the positions of the block that lie before its `contextLength`. Scores are q k * scale.
    void (*attend)(const KvBlockView& block, QueryState* queries, int nQueries, float scale) noexcept;
    /// Adds to `into` what `from` has seen.
    void (*mergeQueries)(QueryState& into, const QueryState& from, int valueDim) noexcept;
};

extern const CpuKernels kGenericKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512VnniKernels;
/// Of quantised types; the rest is as with AVX-512.
extern const CpuKernels::MultiplyTable kAmxKernels;
#elif defined(__aarch64__)
extern const CpuKernels kNeonKernels;
#endif

/// The table of `isa`, which the CPU must support.
const CpuKernels& kernelsOf(Isa isa);

}  // namespace dllama
