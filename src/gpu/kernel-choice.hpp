#pragma once

#include "gpu/kernels/kernels.hpp"

/// Which kernel serves which shape. Every threshold of the backend stands here, with the measurement behind it
/// (H100 80 GB HBM3, Q40, 27 November 2026, bench/gpu-ops and bench/gpu-model, unless said otherwise).
namespace dllama::gpu {

/// Compute capability of the oldest device: tensor cores for signed bytes and f16 (Turing).
constexpr int kOldestCapability = 75;

/// Steps of at most this many tokens are recorded as CUDA graphs. Longer ones hide their launches behind their work.
constexpr int kMaxGraphTokens = 64;

/// Products of more than kMaxFewRows rows go through the f16 tensor cores in tiles of 64 rows where these make enough
/// blocks, three for four multiprocessors, else in passes of kMaxFewRows. Of 64 rows, microseconds by tiles and by two
/// passes: 4608 x 4096 weights 126 and 48, 4096 x 13696 430 and 92, 151552 x 4096 507 and 1099, gate and up of 13696 x
/// 4096 171 and 173.
inline bool fillsMatmul(int outputs, bool gated, int nSms) {
    return ceilDiv(outputs, gated ? 128 : 256) * 4 >= nSms * 3;
}

/// From this many rows on gate, up and activation are one kernel: of 16, 32 rows 62 and 86 us, by parts 64 and 113; of
/// 8 58 and 39.
constexpr int kRowsOfFfnUp = 16;

/// With so many rows, long rows of weights go through the kernel that keeps slices of the activations in shared memory:
/// 4096 x 12288 weights with 16 rows 32 us, by launchLinearFew 40, with 4 rows 29 and 23; 4096 x 13696 with 16 rows 36
/// and 37, with 32 rows 49 and 46.
constexpr int kFirstRowsOfLong = 9, kLastRowsOfLong = 16, kLongGroups = 96;

/// From this many tokens of a sequence on attention works on tiles of its queries.
constexpr int kPrefillTokensOfSequence = 8;

/// From this many tokens on, and up to kMaxRowPairs pairs, each chosen expert is read once for all its tokens. A MoE
/// layer of INTELLECT-3 whose tokens choose independently, microseconds this way and by what there was before: 16
/// tokens 527 and 554 on an H100, 510 and 492 on an H200; there 32 tokens 811 and 1642, 64 tokens 943 and 1856. Tokens
/// that share experts gain more. Of 4 tokens, which share hardly any: 216 and 148 (H100).
constexpr int kRowExpertTokens = 16;

/// Up to this many tokens the experts are otherwise read token by token, from more on in tiles of 64 rows.
constexpr int kFewExpertTokens = kFewRouted;

}  // namespace dllama::gpu
