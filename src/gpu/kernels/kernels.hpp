#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "backend/activation.hpp"
#include "backend/batch.hpp"
#include "gpu/kernels/launch.hpp"

/// Parameters and launchers of all kernels. Pointers are device memory unless said otherwise.
///
/// Layouts of quantised data. Columns are padded with zeros to groups of 128, four blocks of 32. A block's values
/// 4w..4w+3 are its word w; lane t (of 4) of a group works on words t and t + 4 of its four blocks, so these stand
/// together and each lane reads 16 bytes:
///   Q40 weights  [row][group][t][block]             4 bytes: byte i = value 4t+i | value 16+4t+i << 4, both signed
///   Q80, both    [row][group][block / 2][t][block % 2][word t, word t + 4]       8 bytes
///   scales       [row][group][block]                f16 for weights, f32 for activations
/// Weights of float types are row-major, rows padded with zeros to 128 columns.
namespace dllama::gpu {

constexpr int kGroup = 128;

/// The Q80 form of activations.
struct QuantRows {
    int8_t* values = nullptr;  // (rows, groups * 128)
    float* scales = nullptr;   // (rows, groups * 4)
    int groups = 0;

    QuantRows from(int row) const {
        if (!values) return *this;
        return {values + static_cast<size_t>(row) * groups * kGroup, scales + static_cast<size_t>(row) * groups * 4,
                groups};
    }
};

struct Rows {
    float* f32 = nullptr;  // (rows, cols)
    int cols = 0;
    QuantRows q;  // q.values null: f32 only
};

struct Weights {
    DType dtype = DType::F32;
    const uint8_t* data = nullptr;
    const __half* scales = nullptr;
    const float* bias = nullptr;
    int rows = 0;
    int cols = 0;
    int groups = 0;
};

/// Most routed experts of a layer.
constexpr int kMaxExperts = 512;

/// Equal matrices in one allocation, one per expert that this rank holds.
struct ExpertWeights {
    Weights gate, up, down;  // of slot 0
    size_t dataStride[3] = {};
    size_t scaleStride[3] = {};
    const int32_t* slots = nullptr;  // (nExperts) place in the allocation, or -1
    int nExperts = 0;
};

struct NormWeights {
    const float* weight = nullptr;
    const float* bias = nullptr;  // Layer only
    float eps = 0.0f;
    bool layer = false;
};

/// Whether this build has code that the current device can run.
bool hasDeviceCode();

/// Repacks rows x cols stored values (blocks of the file for quantised types) to the layouts above.
struct RepackParams {
    DType dtype;
    const uint8_t* stored;
    uint8_t* data;
    __half* scales;
    int rows, cols, groups;
};
void launchRepack(const RepackParams& p, const Stream& stream);

/// A programmer's error: no kernel is written over this type.
[[noreturn]] void failOnType(DType type);

/// Bytes of a group of 128 weights of a quantised type, without its scales.
size_t quantGroupBytes(DType dtype);

/// values as f32 from any stored type.
struct WidenParams {
    DType dtype;
    const uint8_t* stored;
    float* out;
    int64_t n;
};
void launchWiden(const WidenParams& p, const Stream& stream);

struct QuantizeParams {
    const float* x;  // (rows, cols)
    int rows, cols;
    QuantRows out;
};
void launchQuantize(const QuantizeParams& p, const Stream& stream);

struct AddNormParams {
    int rows, cols;
    float* x;
    const float* y;           // or null
    const float* scaledBase;  // or null
    float alpha;
    bool hasPost, hasNext;
    NormWeights post, next;
    Rows out;
    bool stageWeights;  // set by the launcher: the weights have room in shared memory
};
void launchAddNorm(const AddNormParams& p, const Stream& stream);

/// out (m, w.rows) = in W^T + bias, or += . `in` by its Q80 form where the weights are quantised.
struct LinearParams {
    int m;
    Rows in;
    Weights w;
    float* out;
    int outCols;
    bool accumulate;
};
/// One row.
void launchLinear(const LinearParams& p, const Stream& stream);
/// 2 to kMaxFewRows rows of quantised weights.
constexpr int kMaxFewRows = 32;
void launchLinearFew(const LinearParams& p, const Stream& stream);

/// The same from 8.0 on where the activations fit into shared memory, from 9.0 on in slices. With `up`: out = act(gate
/// in) * (up in), also as Q80.
struct LinearRowsParams {
    int m;
    QuantRows in;
    Weights w, up;  // up.data null: plain
    Activation act;
    float* out;
    int outCols;
    bool accumulate;
    QuantRows q;  // with `up`, or none
};
bool canLinearRows(const LinearRowsParams& p, const Stream& stream);
void launchLinearRows(const LinearRowsParams& p, const Stream& stream);
/// Any number of rows of F32, F16 or BF16 weights.
void launchLinearFloat(const LinearParams& p, const Stream& stream);

/// out = silu or gelu(gate in) * (up in), one row, quantised weights.
struct FfnUpParams {
    Rows in;
    Weights gate, up;
    Activation act;
    Rows out;
};
void launchFfnUp(const FfnUpParams& p, const Stream& stream);

/// out = act(gate) * up, or act(up) where gate is null.
struct GluParams {
    int rows, cols;
    const float* gate;
    const float* up;
    Activation act;
    Rows out;
};
void launchGlu(const GluParams& p, const Stream& stream);

/// The Q80 rows as f16 for the tensor cores, scaled by a power of two that keeps each row in range, with the 16 values
/// of half a block in the order 0 2 4 6 .. as matmul.cu reads them.
struct StageRowsParams {
    int rows;
    QuantRows in;
    __half* out;      // (rows, groups * 128)
    float* rowScale;  // (rows) what undoes the scaling
};
void launchStageRows(const StageRowsParams& p, const Stream& stream);

/// Weights and activations for a product by a library: f16, columns padded to groups * 128 and in the order that
/// launchStageRows makes.
struct WidenWeightsParams {
    Weights w;    // quantised
    __half* out;  // (w.rows, groups * 128), scales applied
};
void launchWidenWeights(const WidenWeightsParams& p, const Stream& stream);
/// One power of two for all rows: the largest scale's bits, and what undoes it.
struct Scaling {
    int32_t largest;
    float undo;
};
struct StageAllParams {
    int rows;
    QuantRows in;
    __half* out;  // (rows, groups * 128)
    Scaling* scaling;
};
void launchStageAll(const StageAllParams& p, const Stream& stream);
/// The same of f32 rows, for F16 or BF16 weights as they are stored: the rounded rows, then as many rows of what the
/// rounding has left, so that two products have nearly the precision of f32.
struct StageFloatsParams {
    int rows, cols, groups;
    const float* in;  // (rows, cols)
    DType dtype;
    void* out;  // (2, rows, groups * 128) in dtype
    Scaling* scaling;
};
void launchStageFloats(const StageFloatsParams& p, const Stream& stream);
/// out[r][c] += bias[c]
struct AddBiasParams {
    int rows, cols, outCols;
    const float* bias;
    float* out;
};
void launchAddBias(const AddBiasParams& p, const Stream& stream);

/// Tokens sorted by expert: what the grouped products work on.
struct ExpertTile {
    int slot, row0, rows, unused;
};
constexpr int kExpertTileRows = 64;

/// The product of many rows and quantised weights through tensor cores. Plain: out (+)= A W^T + bias. With `up`: the
/// activated product of both, also as Q80.
struct MatmulParams {
    int m;
    const __half* a;
    const float* rowScale;
    Weights w, up;  // up.data null: plain
    Activation act;
    float* out;  // may be null with `up`
    int outCols;
    bool accumulate;
    QuantRows q;
    // Grouped by expert, if tiles is given: output row i is product of A row rowIndex[i] (or i) and the tile's expert.
    const ExpertTile* tiles;
    const int32_t* nTiles;
    int maxTiles;
    const int32_t* rowIndex;
    size_t dataStride[2], scaleStride[2];
};
/// False where the device's shared memory is too small.
bool canMatmul(DType dtype, const Stream& stream);
void launchMatmul(const MatmulParams& p, const Stream& stream);

struct RopeStoreParams {
    int nTokens, maxBlocks;
    float* qkv;
    int qkvCols;
    int nHeads, nKvHeads, headDim;
    bool interleaved;
    int parts, rotaryDim;
    const float *cos, *sin;
    bool hasQNorm, hasKNorm;
    NormWeights qNorm, kNorm;
    void *k, *v;
    bool f32Cache;
    const int32_t *positions, *ropePositions, *sequences, *blockTables;
};
void launchRopeStore(const RopeStoreParams& p, const Stream& stream);

struct AttentionParams {
    int nTokens, nSequences, maxBlocks;
    int maxContextLength;  // bound on every token's `contextLength`, the same at each replay
    const float* qkv;
    int qkvCols;
    int nHeads, nKvHeads, headDim, group, headOffset;
    const void *k, *v;
    bool f32Cache;
    const int32_t *contextLengths, *sequences, *blockTables;
    Rows out;
    int nSplits;
    float* partial;       // (nTokens, nHeads, nSplits, headDim)
    float* partialStats;  // (nTokens, nHeads, nSplits, 2): largest score, sum
    /// The decode kernel does launchRopeStore's work too, but does not write q. Only where no two tokens are of one
    /// sequence.
    bool turns;
    RopeStoreParams rope;
};
/// Any head size and cache type, one warp a query.
void launchAttentionPlain(const AttentionParams& p, const Stream& stream);
/// F16 cache, headDim 64 or 128, groups to 32: few tokens, cut into nSplits parts of the context.
bool canAttentionDecode(const AttentionParams& p, const Stream& stream);
int attentionDecodeSplits(const AttentionParams& p, const Stream& stream);
void launchAttentionDecode(const AttentionParams& p, const Stream& stream);
/// F16 cache, headDim 64 or 128, groups to 64: many tokens of a sequence.
bool canAttentionPrefill(const AttentionParams& p, const Stream& stream);
void launchAttentionPrefill(const AttentionParams& p, const Stream& stream);

struct RouteParams {
    int nTokens;
    Rows in;
    bool sigmoid, normalize;
    int nExperts, topK, nGroups, topGroups;
    float scale;
    const float* weight;
    const float* bias;  // or null
    float* logits;      // (nTokens, nExperts) scratch
    int32_t* arrived;   // (nTokens) zeros, left as zeros
    int32_t* experts;
    float* weights;
};
/// Of up to so many tokens, the kernel behind it starts no earlier than `in` is there.
constexpr int kFewRouted = 16;
void launchRoute(const RouteParams& p, const Stream& stream);

/// An FFN beside the routed experts, of their type and without biases.
struct SharedExpert {
    Weights gate, up, down;  // no rows: none
    QuantRows hidden;        // (nTokens, ffn)
};
/// A token's experts one by one: gate, up and activation to `hidden`, then down. With a shared expert out is set and
/// not added to; launchRoute of up to kFewRouted tokens must be what was launched before.
struct ExpertsDecodeParams {
    int nTokens, topK;
    Rows in;
    ExpertWeights w;
    const int32_t* experts;
    const float* weights;
    Rows hidden;  // (nTokens * topK, ffn)
    float* out;
    int outCols;
    SharedExpert shared;  // quantised types only
    float* pairOut;       // (nTokens * topK, outputs) scratch of launchExpertsRows
};
void launchExpertsDecode(const ExpertsDecodeParams& p, const Stream& stream);
/// Every chosen expert once for all its tokens, quantised types, up to kMaxRowPairs pairs; out is added to and `shared`
/// not looked at. launchRoute must be what was launched before.
constexpr int kMaxRowPairs = 512;
bool canExpertsRows(const ExpertsDecodeParams& p, const Stream& stream);
void launchExpertsRows(const ExpertsDecodeParams& p, const Stream& stream);

/// Sorts (token, k) pairs by expert, cut into tiles of kExpertTileRows.
struct SortExpertsParams {
    int nTokens, topK;
    const int32_t* experts;
    const int32_t* slots;
    int nExperts;
    int32_t* rowToken;  // (nTokens * topK) token of each sorted row
    int32_t* rowOf;     // (nTokens * topK) sorted row of each pair, or -1
    ExpertTile* tiles;  // (maxTiles)
    int32_t* nTiles;
};
void launchSortExperts(const SortExpertsParams& p, const Stream& stream);

/// out row t += sum over k of weights[t, k] * y[rowOf[t, k]].
struct MixExpertsParams {
    int nTokens, topK, cols;
    const int32_t* rowOf;
    const float* weights;
    const float* y;
    float* out;
};
void launchMixExperts(const MixExpertsParams& p, const Stream& stream);

/// out row i = x row rows[i], both forms.
struct GatherParams {
    int nRows;
    const int32_t* rows;
    Rows x, out;
};
void launchGather(const GatherParams& p, const Stream& stream);

/// The best logits of each row: Backend::topLogits.
struct TopLogitsParams {
    int rows, cols, k, firstToken;
    const float* logits;        // (rows, cols)
    const float* temperatures;  // (rows)
    unsigned long long* keys;   // scratch, topLogitsKeys() of them
    float2* parts;              // scratch, topLogitsParts() of them
    int32_t* arrived;           // (rows) zeros, left as zeros
    float* out;
    int outCols;
};
size_t topLogitsKeys(int rows, int cols);
size_t topLogitsParts(int rows, int cols);
/// To 1,048,576 columns.
bool canTopLogits(int cols, int k);
void launchTopLogits(const TopLogitsParams& p, const Stream& stream);

}  // namespace dllama::gpu
