#include "engine/batch-builder.hpp"

#include <algorithm>

#include "base/errors.hpp"

namespace dllama {

namespace {

/// The original GLM counts positions in two ways (modeling_chatglm.py, get_position_ids): tokens before <sop> by their
/// place, block position 0; <sop> and the answer all stand at the place of [gMASK] (or [MASK]), block position 1, 2,
/// ...
struct Positions2d {
    int prefix = 0;
    int maskPosition = 0;

    Positions2d(const ModelConfig& config, std::span<const int> tokens, int prefixLength) : prefix(prefixLength) {
        const auto find = [&](int id) {
            const auto end = tokens.begin() + prefix;
            const auto found = std::find(tokens.begin(), end, id);
            return found == end ? -1 : static_cast<int>(found - tokens.begin());
        };
        maskPosition = find(config.gmaskTokenId);
        if (maskPosition < 0) maskPosition = find(config.maskTokenId);
        if (maskPosition < 0) throw ConfigError("a prompt for this model needs [gMASK] or [MASK] before <sop>");
    }
    int first(int t) const { return t < prefix ? t : maskPosition; }
    int second(int t) const { return t < prefix ? 0 : t - prefix + 1; }
};

}  // namespace

int prefixLength(const Architecture& arch, std::span<const int> tokens) {
    if (!arch.prefixMask) return 0;
    const auto sop = std::find(tokens.begin(), tokens.end(), arch.config.bosTokenId);
    if (sop == tokens.end())
        throw ConfigError("a prompt for this model needs <sop> (token {})", arch.config.bosTokenId);
    return static_cast<int>(sop - tokens.begin());
}

Batch buildBatch(const Architecture& arch, const EmbeddingTable& embeddings, std::span<const BatchPart> parts) {
    Batch batch;
    batch.nSequences = static_cast<int>(parts.size());
    for (const BatchPart& part : parts) {
        batch.nTokens += part.end - part.begin;
        batch.maxBlocks = std::max(batch.maxBlocks, static_cast<int>(part.blocks.size()));
    }
    std::vector<int> tokens;
    std::vector<int32_t> secondPositions;
    batch.blockTables.assign(static_cast<size_t>(batch.nSequences) * batch.maxBlocks, 0);
    for (int s = 0; s < batch.nSequences; s++) {
        const BatchPart& part = parts[s];
        const int prefix = prefixLength(arch, part.tokens);
        DLLAMA_CHECK(part.begin < part.end && (part.begin >= prefix || (part.begin == 0 && part.end >= prefix)));
        std::copy(part.blocks.begin(), part.blocks.end(),
                  batch.blockTables.begin() + static_cast<size_t>(s) * batch.maxBlocks);
        for (int t = part.begin; t < part.end; t++) {
            if (t >= part.outputBegin) batch.outputRows.push_back(static_cast<int32_t>(tokens.size()));
            tokens.push_back(part.tokens[t]);
            batch.sequences.push_back(s);
            batch.positions.push_back(t);
            batch.contextLengths.push_back(std::max(t + 1, prefix));
        }
        if (arch.ropeParts == 2) {
            const Positions2d rule(arch.config, part.tokens, prefix);
            for (int t = part.begin; t < part.end; t++) {
                batch.ropePositions.push_back(rule.first(t));
                secondPositions.push_back(rule.second(t));
            }
        }
    }
    if (arch.ropeParts == 1) batch.ropePositions = batch.positions;
    batch.ropePositions.insert(batch.ropePositions.end(), secondPositions.begin(), secondPositions.end());
    batch.embeddingType = embeddings.dtype();
    batch.embeddings = embeddings.rows(tokens);
    return batch;
}

}  // namespace dllama
