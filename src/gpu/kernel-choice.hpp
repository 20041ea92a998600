#pragma once

#include "gpu/kernels/kernels.hpp"

/// Which kernel serves which shape. Every threshold of the backend stands here, with the measurement behind it
/// (H100 80 GB HBM3, Q40, 27 November 2026, bench/gpu-ops and bench/gpu-model, unless said otherwise).
namespace dllama::gpu {

/// Compute capability of the oldest device: tensor cores for signed bytes and f16 (Turing).
constexpr int kOldestCapability = 75;

/// Steps of at most this many tokens are recorded as CUDA graphs. Longer ones hide their launches behind their work.
constexpr int kMaxGraphTokens = 64;

/// From this many rows on products go through the f16 tensor cores in tiles of 64 rows.
constexpr int kPrefillRows = kMaxFewRows + 1;

/// From this many tokens of a sequence on attention works on tiles of its queries.
constexpr int kPrefillTokensOfSequence = 8;

/// Up to this many tokens experts are read token by token.
constexpr int kFewExpertTokens = kFewRouted;

}  // namespace dllama::gpu
