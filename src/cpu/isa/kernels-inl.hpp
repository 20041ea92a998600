// No #pragma once: a part of each file of this folder, which includes it once, after it has defined the vectors:
//   Floats, Ints               kLanes values; one int32 or float lane is one row of a packed group
//   kQuantTile, kFloatTile     inputs that a tile of a product takes (powers of two)
//   zero() set1() load() store() loadF16() storeF16() loadBf16() roundToF16()
//   add() sub() mul() div() mulAdd(a, b, c) = a * b + c, max() min() abs() round() toInts() toFloats() pow2()
//   add(Ints, Ints) zeroInts() storeInt8()
//   first() sumLanes() largestLane(), sumEach(v): lane i is the sum of v[i]
//   Bytes                      4 * kLanes bytes: four consecutive columns of each row of a group
//   loadBytes() lowNibbles() highNibbles()
//   dotNibbles(parts, input, offset)   the sums of a block's 8 parts of half bytes 0..15, which stand for 0 - offset
//                              and so on; offset is a power of two
//   signedBytes(bytes)         signed bytes in the form that dotBytes takes
//   dotBytes(parts, input)     the sums of a block's 8 parts of signedBytes()
//
// Everything here has internal linkage and uses nothing of the standard library: a weak symbol compiled for AVX-512
// could become the copy that the whole program uses.

namespace dllama {
namespace {

/// The first n < kLanes values; the other lanes are zero.
template <typename T, typename Load>
inline Floats loadPadded(const T* p, int64_t n, const Load& load) {
    T padded[kLanes] = {};
    for (int64_t i = 0; i < n; i++) padded[i] = p[i];
    return load(padded);
}

inline Floats loadUpTo(const float* p, int64_t n) {
    return n >= kLanes ? load(p) : loadPadded(p, n, [](const float* q) { return load(q); });
}

inline void storeUpTo(float* p, Floats v, int64_t n) {
    if (n >= kLanes) return store(p, v);
    float padded[kLanes];
    store(padded, v);
    for (int64_t i = 0; i < n; i++) p[i] = padded[i];
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/weights-inl.hpp"

namespace dllama {
namespace {

// Products with quantised weights. The sum over a block of inputs is exact; over blocks it runs in their order, so that
// a product has the same bits in every tile.

/// Bytes ahead of a product with one input at which weights are asked for. The processor alone does not follow a stream
/// fast enough: 16 Sapphire Rapids cores read Q40 at 115 GB/s without this, at 139, 160 and 179 with 1, 2 and 4 KB.
constexpr size_t kAhead = 4096;

template <DType kType, int kTile>
inline void packedTile(const std::byte* group, int64_t nBlocks, const InputView& x, const int32_t* inputRows,
                       float* out, int stride) {
    constexpr int kInputBlocks = blockValues(kType) / kBlockValues, kHead = dtypeInfo(kType).headBytes * kLanes;
    constexpr size_t kBlockBytes = blockBytes(kType) * kLanes;
    Floats sums[kTile];
    const InputBlock* inputs[kTile];
    for (int i = 0; i < kTile; i++) {
        sums[i] = zero();
        inputs[i] = x.blocks + inputRows[i] * nBlocks * kInputBlocks;
    }
    for (int64_t b = 0; b < nBlocks; b++) {
        Weights<kType> weights;
        weights.load(group, group + kHead);
        if constexpr (kTile == 1)
            for (size_t at = 0; at < kBlockBytes; at += 64) __builtin_prefetch(group + kAhead + at);
        group += kBlockBytes;
        for (int part = 0; part < kInputBlocks; part++) {
            for (int i = 0; i < kTile; i++) {
                const InputBlock& input = inputs[i][b * kInputBlocks + part];
                sums[i] = mulAdd(toFloats(weights.dot(part, input)), mul(weights.scales, set1(input.scale)), sums[i]);
            }
        }
    }
    for (int i = 0; i < kTile; i++) store(out + i * stride, sums[i]);
}

template <DType kType, int kTile>
inline void packedGroup(const std::byte* group, int64_t nBlocks, const InputView& x, const int32_t* inputRows,
                        int nInputs, float* out, int stride) {
    int i = 0;
    for (; i + kTile <= nInputs; i += kTile)
        packedTile<kType, kTile>(group, nBlocks, x, inputRows + i, out + i * stride, stride);
    if constexpr (kTile > 1)
        packedGroup<kType, kTile / 2>(group, nBlocks, x, inputRows + i, nInputs - i, out + i * stride, stride);
}

template <DType kType>
void multiplyPacked(const WeightView& w, int64_t row, int nRows, const InputView& x, const int32_t* inputRows,
                    int nInputs, float* out, int stride) noexcept {
    constexpr int64_t kValues = blockValues(kType), kBytes = blockBytes(kType);
    const int64_t nBlocks = w.cols / kValues, groupBytes = nBlocks * kBytes * kLanes;
    for (int r = 0; r < nRows; r += kLanes)
        packedGroup<kType, kQuantTile>(w.packed + (row + r) / kLanes * groupBytes, nBlocks, x, inputRows, nInputs,
                                       out + r, stride);
}

// Products with float weights: one vector of partial sums for each row and input, column c in lane c % kLanes.

struct WeightF32 {
    using Type = float;
    static Floats load(const Type* p) { return dllama::load(p); }
};
struct WeightF16 {
    using Type = uint16_t;
    static Floats load(const Type* p) { return loadF16(p); }
};
struct WeightBf16 {
    using Type = uint16_t;
    static Floats load(const Type* p) { return loadBf16(p); }
};

constexpr int kTileRows = 4;

template <class Weight, int kTile>
inline void floatTile(const typename Weight::Type* const* rows, int64_t cols, const InputView& x,
                      const int32_t* inputRows, int nRows, float* out, int stride) {
    Floats sums[kTileRows][kTile];
    const float* inputs[kTile];
    for (int i = 0; i < kTile; i++) {
        inputs[i] = x.f32 + inputRows[i] * x.cols;
        for (int r = 0; r < kTileRows; r++) sums[r][i] = zero();
    }
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
        Floats weights[kTileRows];
        for (int r = 0; r < kTileRows; r++) weights[r] = Weight::load(rows[r] + c);
        for (int i = 0; i < kTile; i++) {
            const Floats input = load(inputs[i] + c);
            for (int r = 0; r < kTileRows; r++) sums[r][i] = mulAdd(weights[r], input, sums[r][i]);
        }
    }
    if (c < cols) {
        for (int i = 0; i < kTile; i++) {
            const Floats input = loadUpTo(inputs[i] + c, cols - c);
            for (int r = 0; r < kTileRows; r++)
                sums[r][i] = mulAdd(loadPadded(rows[r] + c, cols - c, Weight::load), input, sums[r][i]);
        }
    }
    for (int i = 0; i < kTile; i++)
        for (int r = 0; r < nRows; r++) out[i * stride + r] = sumLanes(sums[r][i]);
}

template <class Weight, int kTile>
inline void floatRows(const typename Weight::Type* const* rows, int64_t cols, const InputView& x,
                      const int32_t* inputRows, int nInputs, int nRows, float* out, int stride) {
    int i = 0;
    for (; i + kTile <= nInputs; i += kTile)
        floatTile<Weight, kTile>(rows, cols, x, inputRows + i, nRows, out + i * stride, stride);
    if constexpr (kTile > 1)
        floatRows<Weight, kTile / 2>(rows, cols, x, inputRows + i, nInputs - i, nRows, out + i * stride, stride);
}

template <class Weight>
void multiplyFloats(const WeightView& w, int64_t row, int nRows, const InputView& x, const int32_t* inputRows,
                    int nInputs, float* out, int stride) noexcept {
    for (int r = 0; r < nRows; r += kTileRows) {
        const int n = nRows - r < kTileRows ? nRows - r : kTileRows;
        const typename Weight::Type* rows[kTileRows];
        // A tile that has fewer rows repeats the last one and drops the result.
        for (int i = 0; i < kTileRows; i++)
            rows[i] = reinterpret_cast<const typename Weight::Type*>(w.rows[row + r + (i < n ? i : n - 1)]);
        floatRows<Weight, kFloatTile>(rows, w.cols, x, inputRows, nInputs, n, out + r, stride);
    }
}

void quantizeBlocks(const float* x, int64_t n, InputBlock* out) noexcept {
    for (; n > 0; n -= 32, x += 32, out++) {
        Floats largest = abs(load(x));
        for (int i = kLanes; i < 32; i += kLanes) largest = max(largest, abs(load(x + i)));
        const float scale = largestLane(largest) / 127.0f;
        const Floats inverse = set1(scale == 0.0f ? 0.0f : 1.0f / scale);
        Ints sum = zeroInts();
        for (int i = 0; i < 32; i += kLanes) {
            const Floats scaled = mul(load(x + i), inverse);
            const Ints values = toInts(min(max(scaled, set1(-127.0f)), set1(127.0f)));
            storeInt8(out->values + i, values);
            sum = add(sum, values);
        }
        out->scale = roundToF16(scale);
        out->sum = sumLanes(sum);
    }
}

/// e^x within 2e-7 relative for -87 < x < 88, NaN for NaN. x = n ln 2 + r with |r| < 0.35, and e^r by its Taylor series
/// to the seventh power.
inline Floats exp(Floats x) {
    x = min(set1(88.3f), max(set1(-87.3f), x));
    const Floats n = round(mul(x, set1(1.44269504f)));
    // ln 2 in two parts; the first is short enough for n times it to be exact.
    Floats r = mulAdd(n, set1(-0.693359375f), x);
    r = mulAdd(n, set1(2.12194440e-4f), r);
    Floats e = set1(1.0f / 5040.0f);
    e = mulAdd(e, r, set1(1.0f / 720.0f));
    e = mulAdd(e, r, set1(1.0f / 120.0f));
    e = mulAdd(e, r, set1(1.0f / 24.0f));
    e = mulAdd(e, r, set1(1.0f / 6.0f));
    e = mulAdd(e, r, set1(0.5f));
    e = mulAdd(e, r, set1(1.0f));
    e = mulAdd(e, r, set1(1.0f));
    return mul(e, pow2(toInts(n)));
}

inline float exp(float x) {
    return first(exp(set1(x)));
}

template <typename Function>
inline void activate(const float* gate, const float* up, float* out, int64_t n, const Function& function) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const Floats u = loadUpTo(up + i, n - i);
        storeUpTo(out + i, gate ? mul(function(loadUpTo(gate + i, n - i)), u) : function(u), n - i);
    }
}

void silu(const float* gate, const float* up, float* out, int64_t n) noexcept {
    activate(gate, up, out, n, [](Floats x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); });
}

/// 0.5 x (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
void geluTanh(const float* gate, const float* up, float* out, int64_t n) noexcept {
    activate(gate, up, out, n, [](Floats x) {
        const Floats cubic = mulAdd(mul(mul(x, x), x), set1(0.044715f), x);
        return div(x, add(set1(1.0f), exp(mul(cubic, set1(-1.5957691216f)))));
    });
}

float sumExp(const float* x, int64_t n, float largest, float scale) noexcept {
    Floats sums = zero();
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) sums = add(sums, exp(mul(sub(load(x + i), set1(largest)), set1(scale))));
    float sum = sumLanes(sums);
    for (; i < n; i++) sum += exp((x[i] - largest) * scale);
    return sum;
}

void toF16(const float* x, uint16_t* out, int64_t n) noexcept {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) storeF16(out + i, load(x + i));
    if (i == n) return;
    uint16_t padded[kLanes];
    storeF16(padded, loadUpTo(x + i, n - i));
    for (int64_t j = 0; j < n - i; j++) out[i + j] = padded[j];
}

void fromF16(const uint16_t* x, float* out, int64_t n) noexcept {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, loadF16(x + i));
    if (i == n) return;
    const Floats last = loadPadded(x + i, n - i, [](const uint16_t* p) { return loadF16(p); });
    storeUpTo(out + i, last, n - i);
}

// Attention. All sums of a query run in an order that its own `contextLength` decides.

constexpr int kPositions = 32;

/// scores[p] = scale * q k[p] for the 32 positions of a block.
inline void scoreBlock(const float* q, const float* k, int headDim, float scale, float* scores) {
    for (int p = 0; p < kPositions; p += kLanes, k += kLanes * headDim) {
        Floats sums[kLanes];
        for (int i = 0; i < kLanes; i++) sums[i] = zero();
        int d = 0;
        for (; d + kLanes <= headDim; d += kLanes) {
            const Floats qd = load(q + d);
            for (int i = 0; i < kLanes; i++) sums[i] = mulAdd(qd, load(k + i * headDim + d), sums[i]);
        }
        if (d < headDim) {
            const Floats qd = loadUpTo(q + d, headDim - d);
            for (int i = 0; i < kLanes; i++) sums[i] = mulAdd(qd, loadUpTo(k + i * headDim + d, headDim - d), sums[i]);
        }
        store(scores + p, mul(sumEach(sums), set1(scale)));
    }
}

/// mixed[d] = mixed[d] * keep + sum of weights[p] * v[p][d], for kVectors vectors of d.
template <int kVectors>
inline void mixValues(const float* weights, int n, const float* v, int stride, float keep, float* mixed) {
    Floats sums[kVectors];
    for (int i = 0; i < kVectors; i++) sums[i] = mul(load(mixed + i * kLanes), set1(keep));
    for (int p = 0; p < n; p++, v += stride) {
        const Floats weight = set1(weights[p]);
        for (int i = 0; i < kVectors; i++) sums[i] = mulAdd(weight, load(v + i * kLanes), sums[i]);
    }
    for (int i = 0; i < kVectors; i++) store(mixed + i * kLanes, sums[i]);
}

inline void mixLast(const float* weights, int n, const float* v, int stride, float keep, float* mixed, int width) {
    Floats sum = mul(loadUpTo(mixed, width), set1(keep));
    for (int p = 0; p < n; p++, v += stride) sum = mulAdd(set1(weights[p]), loadUpTo(v, width), sum);
    storeUpTo(mixed, sum, width);
}

void attend(const KvBlockView& block, QueryState* queries, int nQueries, float scale) noexcept {
    for (int i = 0; i < nQueries; i++) {
        QueryState& query = queries[i];
        const int left = query.contextLength - block.position;
        if (left <= 0) continue;
        const int n = left < kPositions ? left : kPositions;
        alignas(64) float scores[kPositions];
        scoreBlock(query.q, block.k, block.keyDim, scale, scores);
        // What lies behind the contextLength positions may be anything.
        for (int p = n; p < kPositions; p++) scores[p] = -__builtin_inff();

        Floats best = load(scores);
        for (int p = kLanes; p < kPositions; p += kLanes) best = max(best, load(scores + p));
        const float blockLargest = largestLane(best);
        const float largest = query.largest > blockLargest ? query.largest : blockLargest;
        const float keep = exp(query.largest - largest);
        for (int p = 0; p < kPositions; p += kLanes) store(scores + p, exp(sub(load(scores + p), set1(largest))));
        Floats sum = load(scores);
        for (int p = kLanes; p < kPositions; p += kLanes) sum = add(sum, load(scores + p));
        query.sum = query.sum * keep + sumLanes(sum);
        query.largest = largest;

        constexpr int kVectors = 8;
        int d = 0;
        for (; d + kVectors * kLanes <= block.valueDim; d += kVectors * kLanes)
            mixValues<kVectors>(scores, n, block.v + d, block.valueStride, keep, query.mixed + d);
        for (; d + kLanes <= block.valueDim; d += kLanes)
            mixValues<1>(scores, n, block.v + d, block.valueStride, keep, query.mixed + d);
        if (d < block.valueDim)
            mixLast(scores, n, block.v + d, block.valueStride, keep, query.mixed + d, block.valueDim - d);
    }
}

void mergeQueries(QueryState& into, const QueryState& from, int headDim) noexcept {
    const float largest = into.largest > from.largest ? into.largest : from.largest;
    const float keep = exp(into.largest - largest);
    const float take = exp(from.largest - largest);
    into.sum = into.sum * keep + from.sum * take;
    into.largest = largest;
    for (int d = 0; d < headDim; d += kLanes) {
        const Floats kept = mul(loadUpTo(into.mixed + d, headDim - d), set1(keep));
        storeUpTo(into.mixed + d, mulAdd(loadUpTo(from.mixed + d, headDim - d), set1(take), kept), headDim - d);
    }
}

template <DType kType>
constexpr CpuKernels::Multiply multiplyOf() {
    if constexpr (isQuantized(kType)) return multiplyPacked<kType>;
    if constexpr (kType == DType::F32) return multiplyFloats<WeightF32>;
    if constexpr (kType == DType::F16) return multiplyFloats<WeightF16>;
    if constexpr (kType == DType::BF16) return multiplyFloats<WeightBf16>;
}

template <int kIndex = 0>
constexpr void fillMultiply(CpuKernels::Multiply* multiply) {
    multiply[kIndex] = multiplyOf<kDTypes[kIndex].type>();
    if constexpr (kIndex + 1 < kNDTypes) fillMultiply<kIndex + 1>(multiply);
}

constexpr CpuKernels::MultiplyTable allMultiply() {
    CpuKernels::MultiplyTable table{};
    fillMultiply(table.of);
    return table;
}

constexpr CpuKernels kTable = {
    kLanes, allMultiply(), quantizeBlocks, silu, geluTanh, sumExp, toF16, fromF16, attend, mergeQueries,
};

}  // namespace
}  // namespace dllama
