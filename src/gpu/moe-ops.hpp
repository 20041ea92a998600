#pragma once

#include "gpu/linear-ops.hpp"

namespace dllama::gpu {

/// Routing and routed experts.
class MoeOps {
  public:
    MoeOps(CudaCore& core, LinearOps& linear) : core_(core), linear_(linear) {}

    /// As Backend::route.
    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing);
    /// As Backend::experts, without the Q80 form of out.
    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                 Activations& out);
    /// As Backend::moe, the shared expert beside the routed ones; false where no kernel does it for this step.
    bool moe(const StepInputs& step, const Activations& in, const MoeOp& m, const Activations& hidden, Routing& routing,
             Activations& out);

  private:
    /// Few tokens' experts, and a shared one if it has rows.
    void fewExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                    const SharedExpert& shared, Activations& out);
    /// What both kernels of few tokens need.
    ExpertsDecodeParams decodeParams(const StepInputs& step, const Activations& in, const Routing& routing,
                                     const ExpertWeights& w, Activations& out);
    bool rowExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                    Activations& out);
    void groupedExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                        Activations& out);

    CudaCore& core_;
    LinearOps& linear_;
};

}  // namespace dllama::gpu
