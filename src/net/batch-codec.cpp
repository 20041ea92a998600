#include "net/batch-codec.hpp"

#include <algorithm>
#include <cstring>

#include "backend/backend.hpp"
#include "base/errors.hpp"

namespace dllama {

namespace {

struct Counts {
    int32_t nTokens = 0, nSequences = 0, maxBlocks = 0, nOutputs = 0, nRope = 0, embeddingBytes = 0, nTop = 0,
            microbatched = 0;
};

template <typename T>
void append(std::vector<std::byte>& out, const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

template <typename T>
void take(std::span<const std::byte>& bytes, size_t n, std::vector<T>& values) {
    values.resize(n);
    if (n > 0) std::memcpy(values.data(), bytes.data(), n * sizeof(T));
    bytes = bytes.subspan(n * sizeof(T));
}

bool allWithin(const std::vector<int32_t>& values, int32_t low, int32_t high) {
    return std::all_of(values.begin(), values.end(), [&](int32_t v) { return v >= low && v < high; });
}

}  // namespace

size_t BatchLimits::maxBytes() const {
    const size_t tokens = static_cast<size_t>(maxTokens);
    const size_t blocks = static_cast<size_t>(nKvBlocks);
    return sizeof(Counts) + tokens * (storedBytes(embeddingType, dim) + sizeof(int32_t) * (3 + ropeParts)) +
           tokens * blocks * sizeof(int32_t) + (sizeof(int32_t) + sizeof(float)) * static_cast<size_t>(maxOutputs);
}

void encodeBatch(const Batch& batch, std::vector<std::byte>& out) {
    const Counts counts{batch.nTokens,
                        batch.nSequences,
                        batch.maxBlocks,
                        batch.nOutputs(),
                        static_cast<int32_t>(batch.ropePositions.size()),
                        static_cast<int32_t>(batch.embeddings.size()),
                        batch.nTop,
                        batch.microbatched ? 1 : 0};
    const auto head = std::as_bytes(std::span(&counts, 1));
    out.assign(head.begin(), head.end());
    append(out, batch.embeddings);
    append(out, batch.positions);
    append(out, batch.contextLengths);
    append(out, batch.ropePositions);
    append(out, batch.sequences);
    append(out, batch.blockTables);
    append(out, batch.outputRows);
    append(out, batch.outputTemperatures);
}

void decodeBatch(std::span<const std::byte> bytes, const BatchLimits& limits, const std::string& peer, Batch& batch) {
    Counts c;
    if (bytes.size() < sizeof c) throw ProtocolError("{}: a batch of {} bytes", peer, bytes.size());
    std::memcpy(&c, bytes.data(), sizeof c);
    bytes = bytes.subspan(sizeof c);
    const bool countsFit = c.nTokens > 0 && c.nTokens <= limits.maxTokens && c.nSequences > 0 &&
                           c.nSequences <= c.nTokens && c.maxBlocks >= 0 && c.maxBlocks <= limits.nKvBlocks &&
                           c.nOutputs >= 0 && c.nOutputs <= std::min(limits.maxOutputs, c.nTokens) &&
                           c.nRope == c.nTokens * limits.ropeParts &&
                           (c.nTop == 0 || c.nTop == 1 || c.nTop == kMaxTopLogits) &&
                           (c.microbatched == 0 || (c.microbatched == 1 && c.nTokens > 1));
    if (!countsFit || static_cast<size_t>(c.embeddingBytes) !=
                          storedBytes(limits.embeddingType, static_cast<int64_t>(c.nTokens) * limits.dim))
        throw ProtocolError("{}: a batch of {} tokens, {} sequences, {} blocks and {} outputs is beyond the limits",
                            peer, c.nTokens, c.nSequences, c.maxBlocks, c.nOutputs);
    const size_t tables = static_cast<size_t>(c.nSequences) * c.maxBlocks;
    const size_t temperatures = c.nTop > 0 ? c.nOutputs : 0;
    const size_t values = 3 * static_cast<size_t>(c.nTokens) + c.nRope + tables + c.nOutputs + temperatures;
    if (bytes.size() != c.embeddingBytes + values * sizeof(int32_t))
        throw ProtocolError("{}: a batch of {} tokens has {} bytes, must have {}", peer, c.nTokens, bytes.size(),
                            c.embeddingBytes + values * sizeof(int32_t));
    batch.nTokens = c.nTokens;
    batch.nSequences = c.nSequences;
    batch.maxBlocks = c.maxBlocks;
    batch.embeddingType = limits.embeddingType;
    take(bytes, c.embeddingBytes, batch.embeddings);
    take(bytes, c.nTokens, batch.positions);
    take(bytes, c.nTokens, batch.contextLengths);
    take(bytes, c.nRope, batch.ropePositions);
    take(bytes, c.nTokens, batch.sequences);
    take(bytes, tables, batch.blockTables);
    take(bytes, c.nOutputs, batch.outputRows);
    batch.nTop = c.nTop;
    batch.microbatched = c.microbatched == 1;
    take(bytes, temperatures, batch.outputTemperatures);

    const int positions = std::min(limits.maxPositions, c.maxBlocks * kKvBlockPositions);
    if (!allWithin(batch.positions, 0, positions) || !allWithin(batch.contextLengths, 1, positions + 1) ||
        !allWithin(batch.ropePositions, 0, limits.maxPositions) || !allWithin(batch.sequences, 0, c.nSequences) ||
        !allWithin(batch.blockTables, 0, limits.nKvBlocks) || !allWithin(batch.outputRows, 0, c.nTokens))
        throw ProtocolError("{}: a batch names a position, block or row that does not exist", peer);
    for (const float temperature : batch.outputTemperatures)
        if (!(temperature >= 0.0f && temperature <= 1e6f))
            throw ProtocolError("{}: a batch with a temperature of {}", peer, temperature);
}

}  // namespace dllama
