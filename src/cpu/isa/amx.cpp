// AMX int8 tiles, for products of many inputs with quantised weights; everything else is AVX-512's.
//
// A tile product takes 16 inputs and a packed group of 16 rows over the 32 columns of an input block, which gives the
// exact sum of that block: scaled and added in the order of the blocks, the bits are those of AVX-512 with VNNI.
//   A (16 inputs x 32 bytes)    the inputs' values, packed together
//   B (8 x 16 rows x 4 bytes)   the weights as signed bytes, in the order in which they are packed
//   C (16 inputs x 16 rows)     int32 sums
// Columns are walked through in pieces, so that what the products read again stays in the first-level cache: the packed
// inputs of all tiles, and the unpacked weights of a group. Between pieces the sums wait in `out`.

#include <immintrin.h>

#include "cpu/kernels.hpp"

namespace dllama {
namespace {

constexpr int kLanes = 16;
constexpr int kTileInputs = 16;
constexpr int kMaxInputs = 64;  // of a pass
constexpr int kPiece = 16;      // input blocks of a piece
/// Fewer inputs than this in the last tile are faster with VNNI.
constexpr int kWorthTile = 5;

using Floats = __m512;
using Bytes = __m512i;

inline Floats loadF16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline Bytes loadBytes(const std::byte* p, int word) {
    return _mm512_loadu_si512(p + 64 * word);
}
inline Bytes lowNibbles(Bytes both) {
    return _mm512_and_si512(both, _mm512_set1_epi8(15));
}
inline Bytes highNibbles(Bytes both) {
    return _mm512_and_si512(_mm512_srli_epi16(both, 4), _mm512_set1_epi8(15));
}
inline Bytes signedBytes(Bytes bytes) {
    return bytes;
}

/// Takes a block's weights where other instruction sets take its inputs: the "product" is their signed bytes.
struct TileB {
    alignas(64) int8_t bytes[8][64];
};
inline void dotBytes(const Bytes (&parts)[8], TileB& b) {
    for (int j = 0; j < 8; j++) _mm512_store_si512(b.bytes[j], parts[j]);
}
template <int kOffsetBits>
inline void dotNibbles(const Bytes (&parts)[8], TileB& b) {
    for (int j = 0; j < 8; j++)
        _mm512_store_si512(b.bytes[j], _mm512_sub_epi8(parts[j], _mm512_set1_epi8(1 << kOffsetBits)));
}

}  // namespace
}  // namespace dllama

#include "cpu/isa/weights-inl.hpp"

namespace dllama {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t startRow = 0;
    uint8_t reserved[14] = {};
    uint16_t bytesPerRow[16] = {};
    uint8_t rows[16] = {};
};

/// Tiles 0 to 3 are C, 4 and 5 A, 6 and 7 B.
constexpr TileConfig tileConfig() {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) {
        config.bytesPerRow[tile] = tile == 4 || tile == 5 ? 32 : 64;
        config.rows[tile] = tile < 6 ? 16 : 8;
    }
    return config;
}
constexpr TileConfig kConfig = tileConfig();

/// The 16 inputs of a tile over a piece: input i's block b is at[i * stride + b].
struct TileInputs {
    const InputBlock* at;
    int64_t stride;
};

/// Inputs that do not follow each other, or fewer than a tile takes, together.
struct GatheredInputs {
    InputBlock blocks[kTileInputs][kPiece];
};

/// The weights of a group over a piece.
struct UnpackedGroup {
    TileB blocks[kPiece];
    alignas(64) float scales[kPiece][kLanes];
};

inline TileInputs tileInputs(const InputView& x, const int32_t* inputRows, int nInputs, int64_t first, int n,
                             GatheredInputs& gathered) {
    const int64_t nBlocks = x.cols / kBlockValues;
    bool inPlace = nInputs == kTileInputs;
    for (int i = 1; i < nInputs; i++) inPlace = inPlace && inputRows[i] == inputRows[0] + i;
    if (inPlace) return {x.blocks + inputRows[0] * nBlocks + first, nBlocks};
    for (int i = 0; i < kTileInputs; i++) {
        const size_t bytes = sizeof(InputBlock) * static_cast<size_t>(n);
        if (i < nInputs)
            __builtin_memcpy(gathered.blocks[i], x.blocks + inputRows[i] * nBlocks + first, bytes);
        else
            __builtin_memset(gathered.blocks[i], 0, bytes);
    }
    return {gathered.blocks[0], kPiece};
}

template <DType kType>
inline void unpackGroup(const std::byte* group, int n, UnpackedGroup& unpacked) {
    constexpr int kInputBlocks = blockValues(kType) / kBlockValues, kHead = dtypeInfo(kType).headBytes * kLanes;
    constexpr size_t kBlockBytes = blockBytes(kType) * kLanes;
    for (int b = 0; b < n; b += kInputBlocks, group += kBlockBytes) {
        Weights<kType> weights;
        weights.load(group, group + kHead);
        for (int part = 0; part < kInputBlocks; part++) {
            weights.dot(part, unpacked.blocks[b + part]);
            _mm512_store_ps(unpacked.scales[b + part], weights.scales);
        }
    }
}

/// Sums of two blocks in tiles 0 and 1, to `products`.
inline void multiplyTwo(const TileInputs& x, const UnpackedGroup& w, int b,
                        int32_t (&products)[2][kTileInputs][kLanes]) {
    const size_t stride = sizeof(InputBlock) * static_cast<size_t>(x.stride);
    _tile_zero(0);
    _tile_loadd(4, x.at[b].values, stride);
    _tile_loadd(6, w.blocks[b].bytes, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_zero(1);
    _tile_loadd(5, x.at[b + 1].values, stride);
    _tile_loadd(7, w.blocks[b + 1].bytes, 64);
    _tile_dpbssd(1, 5, 7);
    _tile_stored(0, products[0], 64);
    _tile_stored(1, products[1], 64);
}

/// The sums of a group's rows over a piece for the inputs of a tile, from and to out[i * stride]. The tiles are two
/// blocks ahead of the additions: what a tile has stored cannot be loaded at once.
inline void multiplyTile(const TileInputs& x, const UnpackedGroup& w, int n, bool first, int nInputs, float* out,
                         int stride) {
    Floats sums[kTileInputs];
    for (int i = 0; i < kTileInputs; i++)
        sums[i] = first || i >= nInputs ? _mm512_setzero_ps() : _mm512_loadu_ps(out + i * stride);
    alignas(64) int32_t products[2][2][kTileInputs][kLanes];
    const auto add = [&](int b, const int32_t(&c)[kTileInputs][kLanes]) {
        const Floats scales = _mm512_load_ps(w.scales[b]);
        for (int i = 0; i < kTileInputs; i++)
            sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(c[i])),
                                      _mm512_mul_ps(scales, _mm512_set1_ps(x.at[i * x.stride + b].scale)), sums[i]);
    };
    const int twos = n / 2;
    if (twos > 0) multiplyTwo(x, w, 0, products[0]);
    for (int two = 0; two < twos; two++) {
        if (two + 1 < twos) multiplyTwo(x, w, 2 * (two + 1), products[(two + 1) % 2]);
        for (int j = 0; j < 2; j++) add(2 * two + j, products[two % 2][j]);
    }
    for (int b = 2 * twos; b < n; b++) {
        const size_t inputStride = sizeof(InputBlock) * static_cast<size_t>(x.stride);
        _tile_zero(0);
        _tile_loadd(4, x.at[b].values, inputStride);
        _tile_loadd(6, w.blocks[b].bytes, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, products[0][0], 64);
        add(b, products[0][0]);
    }
    for (int i = 0; i < nInputs; i++) _mm512_storeu_ps(out + i * stride, sums[i]);
}

template <DType kType>
void multiplyTiles(const WeightView& w, int64_t row, int nRows, const InputView& x, const int32_t* inputRows,
                   int nInputs, float* out, int stride) noexcept {
    const int rest = nInputs % kTileInputs, nTiled = rest < kWorthTile ? nInputs - rest : nInputs;
    if (nTiled > 0) {
        constexpr int64_t kInputBlocks = blockValues(kType) / kBlockValues, kBytes = blockBytes(kType);
        static_assert(kPiece % kInputBlocks == 0);
        const int64_t nBlocks = w.cols / kBlockValues, blockStep = kBytes * kLanes;
        GatheredInputs gathered[kMaxInputs / kTileInputs];
        TileInputs inputs[kMaxInputs / kTileInputs];
        UnpackedGroup weights;
        _tile_loadconfig(&kConfig);
        for (int begin = 0; begin < nTiled; begin += kMaxInputs) {
            const int n = nTiled - begin < kMaxInputs ? nTiled - begin : kMaxInputs;
            for (int64_t b = 0; b < nBlocks; b += kPiece) {
                const int piece = static_cast<int>(nBlocks - b < kPiece ? nBlocks - b : kPiece);
                for (int i = 0; i < n; i += kTileInputs)
                    inputs[i / kTileInputs] =
                        tileInputs(x, inputRows + begin + i, n - i < kTileInputs ? n - i : kTileInputs, b, piece,
                                   gathered[i / kTileInputs]);
                for (int r = 0; r < nRows; r += kLanes) {
                    const int64_t group = (row + r) / kLanes;
                    unpackGroup<kType>(w.packed + (group * nBlocks + b) / kInputBlocks * blockStep, piece, weights);
                    for (int i = 0; i < n; i += kTileInputs)
                        multiplyTile(inputs[i / kTileInputs], weights, piece, b == 0,
                                     n - i < kTileInputs ? n - i : kTileInputs, out + (begin + i) * stride + r, stride);
                }
            }
        }
        _tile_release();
    }
    if (nTiled < nInputs)
        kAvx512VnniKernels.multiply.of[static_cast<int>(kType)](w, row, nRows, x, inputRows + nTiled, nInputs - nTiled,
                                                                out + nTiled * stride, stride);
}

template <int kIndex = 0>
constexpr void fillTiled(CpuKernels::Multiply* multiply) {
    if constexpr (isQuantized(kDTypes[kIndex].type)) multiply[kIndex] = multiplyTiles<kDTypes[kIndex].type>;
    if constexpr (kIndex + 1 < kNDTypes) fillTiled<kIndex + 1>(multiply);
}

constexpr CpuKernels::MultiplyTable tiled() {
    CpuKernels::MultiplyTable table{};
    fillTiled(table.of);
    return table;
}

}  // namespace

const CpuKernels::MultiplyTable kAmxKernels = tiled();

}  // namespace dllama
