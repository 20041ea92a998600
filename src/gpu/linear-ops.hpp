#pragma once

#include <memory>

#include "gpu/cublas-gemm.hpp"
#include "gpu/cuda-core.hpp"

namespace dllama::gpu {

/// Products with weight matrices, and the FFN's first half.
class LinearOps {
  public:
    explicit LinearOps(CudaCore& core) : core_(core) {}

    /// out (rows, outCols) = in W^T + bias, or += .
    void multiply(int rows, const Activations& in, const Weights& w, float* out, int outCols, bool accumulate);
    /// As Backend::ffnUp; `out` gets its Q80 form too. `gate` may be null.
    void ffnUp(int rows, const Activations& in, const Weights* gate, const Weights& up, Activation act,
               Activations& out);

    /// Whether weights of this type may go through the tiles of 64 rows.
    bool takesMatmul(DType dtype) const;
    /// Q80 rows as f16, and with them the operand A of launchMatmul.
    void stage(int rows, const QuantRows& q, MatmulParams& p);

  private:
    bool usesMatmul(int rows, const Weights& w, bool gated) const;
    bool usesLibrary(int rows) const;
    bool usesLibraryForFloats(int rows, DType dtype) const;
    CublasGemm& library();
    /// In passes of at most kMaxFewRows; false where the kernel for several rows does not take them.
    bool multiplyRows(int rows, LinearRowsParams p);
    void multiplyFew(int rows, LinearParams p);
    bool ffnUpInOne(int rows, const Activations& in, const Weights& gate, const Weights& up, Activation act,
                    const Rows& to);

    CudaCore& core_;
    std::unique_ptr<CublasGemm> library_;  // when first needed
};

}  // namespace dllama::gpu
