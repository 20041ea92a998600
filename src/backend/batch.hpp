#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensor/dtype.hpp"

namespace dllama {

/// Positions in one block of the paged KV cache.
constexpr int kKvBlockPositions = 32;

/// One step's work: any mix of sequences and token counts. Decode of one sequence, a chunk of a prompt and sixteen
/// parallel chats are the same call. All ranks of a cluster receive the same batch.
///
/// Tokens of one sequence stand together, in ascending positions.
struct Batch {
    int nTokens = 0;
    int nSequences = 0;
    /// Width of blockTables.
    int maxBlocks = 0;

    /// The tokens' embedding rows as they are stored: (nTokens, dim) in embeddingType. The table itself stays in the
    /// root's file mapping: no rank keeps it in memory, and every rank starts from the same bits.
    DType embeddingType = DType::F32;
    std::vector<std::byte> embeddings;

    std::vector<int32_t> positions;  // (nTokens) place in the sequence: where K and V are stored
    std::vector<int32_t>
        contextLengths;  // (nTokens) a token attends to the first `contextLengths[t]` positions of its sequence:
                         //           position + 1 when causal, the prefix's length inside a prefix
    std::vector<int32_t> ropePositions;  // (ropeParts, nTokens) the angle's multiplier; two parts for 2D RoPE
    std::vector<int32_t> sequences;      // (nTokens) row of blockTables
    std::vector<int32_t> blockTables;    // (nSequences, maxBlocks) physical block of each kKvBlockPositions positions
    std::vector<int32_t> outputRows;     // (nOutputs) ascending; the tokens whose logits are wanted

    /// The tokens go in two microbatches: one is computed during the all-reduce of the other (Decoder).
    bool microbatched = false;

    /// So many of the best logits of each output row, and of each rank's part of it, are looked for at once; 0: none.
    int nTop = 0;
    std::vector<float> outputTemperatures;  // (nOutputs), or empty without nTop; 0: greedy

    int nOutputs() const { return static_cast<int>(outputRows.size()); }
};

/// The batch on the backend's device. The arrays have the shapes of Batch and are valid until the next upload().
struct StepInputs {
    int nTokens = 0;
    int nSequences = 0;
    int maxBlocks = 0;
    int nOutputs = 0;
    int maxContextLength = 0;
    DType embeddingType = DType::F32;
    const std::byte* embeddings = nullptr;
    const int32_t* positions = nullptr;
    const int32_t* contextLengths = nullptr;
    const int32_t* ropePositions = nullptr;
    const int32_t* sequences = nullptr;
    const int32_t* blockTables = nullptr;
    const int32_t* outputRows = nullptr;
    const float* outputTemperatures = nullptr;
    /// The same batch in host memory.
    const Batch* host = nullptr;
};

}  // namespace dllama
