#pragma once

#include "arch/architecture.hpp"
#include "backend/latent-ops.hpp"
#include "model/weights.hpp"
#include "parallel/communicator.hpp"

namespace dllama {

/// Between the projections of latent attention.
struct LatentBuffers {
    Activations queryLatent;  // (nTokens, q_lora_rank), normalised
    Activations q;            // (nTokens, heads, plain | rotated)
    Activations plain;        // (nTokens, heads, plain)
    Activations queries;      // (nTokens, heads, latent | rotated)
    Activations mixed;        // (nTokens, heads, latent)
};

/// Buffers of a step; (rows, cols) with rows up to maxTokens.
struct StepBuffers {
    Activations x;        // (nTokens, dim)        the residual
    Activations normed;   // (nTokens, dim)        what a block reads
    Activations qkv;      // (nTokens, q | k | v), or what latent attention makes of the hidden state
    Activations context;  // (nTokens, heads * value dim)
    Activations hidden;   // (nTokens, ffn)        inside the dense FFN
    Activations shared;   // (nTokens, shared)     inside the shared experts
    Activations y;        // (nTokens, dim)        a block's output: this rank's part, then the sum over all ranks
    Routing routing;      // (nTokens, topK)
    LatentBuffers latent;

    /// Rows first, first + 1, ... of all of them. Only for backends in host memory.
    StepBuffers rowsFrom(const Backend& backend, int first) const;
};

/// Both blocks of a layer end in an all-reduce.
enum class Block { Attention, FeedForward };

/// One layer as the forward pass runs it: its weights, its KV cache, and what comes behind it.
struct Layer {
    const LayerWeights* weights = nullptr;
    KvLayer* kv = nullptr;
    /// The norm that reads the residual behind this layer: the next layer's first, or the last one before the head.
    const Norm* nextNorm = nullptr;
    /// The matrix that is read first behind this layer, to be brought nearer during the all-reduce; null: none.
    const Matrix* nextMatrix = nullptr;
};

/// What all layers of a rank are computed with. All of it must outlive the context.
struct LayerContext {
    const Architecture& arch;
    Backend& backend;
    Communicator& comm;
    const AttentionShape shape;
    const LatentShape latent;  // of latent attention
    const Rope& rope;

    /// x and normed of the layer's end from those of its beginning: attention, all-reduce, FFN or MoE, all-reduce.
    void runLayer(const StepInputs& step, const Layer& layer, StepBuffers& b) const;

    // The parts of it, for whoever computes something else during the all-reduce.
    /// y = this rank's part of attention(normed) or ffn(normed).
    void computeBlock(const StepInputs& step, const Layer& layer, Block block, StepBuffers& b) const;
    /// x += y, through the block's post-norm; normed = the norm that comes next, of x.
    void addResidual(const StepInputs& step, const Layer& layer, Block block, StepBuffers& b) const;

  private:
    void attendGrouped(const StepInputs& step, const Layer& layer, StepBuffers& b) const;
    void attendLatent(const StepInputs& step, const Layer& layer, StepBuffers& b) const;
    void prefetchBehind(const Layer& layer, Block block) const;
};

}  // namespace dllama
