#include "engine/block-manager.hpp"

#include <xxhash.h>

#include <algorithm>
#include <random>

#include "backend/batch.hpp"
#include "base/errors.hpp"

namespace dllama {

BlockManager::BlockManager(int nBlocks, bool shares) : shares_(shares), blocks_(nBlocks) {
    std::random_device random;
    seed_ = (uint64_t{random()} << 32) | random();
    for (int block = 0; block < nBlocks; block++) blocks_[block].place = free_.insert(free_.end(), block);
}

int BlockManager::missing(std::span<const int> blocks, int nPositions) {
    const int needed = (nPositions + kKvBlockPositions - 1) / kKvBlockPositions;
    return std::max(0, needed - static_cast<int>(blocks.size()));
}

BlockManager::Hash BlockManager::chain(const Hash& parent, std::span<const int> tokens) const {
    const uint64_t seed = XXH3_64bits_withSeed(&parent, sizeof parent, seed_);
    const XXH128_hash_t hash = XXH3_128bits_withSeed(tokens.data(), tokens.size_bytes(), seed);
    return {hash.low64, hash.high64};
}

BlockManager::Prefix BlockManager::acquire(std::span<const int> tokens) {
    Prefix prefix;
    if (!shares_) return prefix;
    Hash parent;
    std::span<const int> rest = tokens;
    while (rest.size() >= kKvBlockPositions) {
        const std::span<const int> mine = rest.first(kKvBlockPositions);
        const auto found = fullBlocks_.find(chain(parent, mine));
        if (found == fullBlocks_.end()) break;
        const Block& block = blocks_[found->second];
        if (block.parent != parent || !std::equal(mine.begin(), mine.end(), block.tokens.begin())) break;
        hold(found->second);
        prefix.blocks.push_back(found->second);
        prefix.nCached += kKvBlockPositions;
        parent = block.own;
        rest = rest.subspan(kKvBlockPositions);
    }
    // The end of a released sequence, if nobody holds it: the next turn of a chat goes on within it.
    const auto found = partialBlocks_.find(parent);
    if (found == partialBlocks_.end()) return prefix;
    const int block = found->second;
    const std::vector<int>& held = blocks_[block].tokens;
    const size_t most = std::min(held.size(), rest.size());
    const auto common = std::mismatch(held.begin(), held.begin() + static_cast<ptrdiff_t>(most), rest.begin());
    const int same = static_cast<int>(common.first - held.begin());
    if (same == 0) return prefix;
    hold(block);
    forget(block);
    prefix.blocks.push_back(block);
    prefix.nCached += same;
    return prefix;
}

bool BlockManager::grow(std::vector<int>& blocks, int nPositions) {
    const int more = missing(blocks, nPositions);
    if (more > nFree()) return false;
    for (int i = 0; i < more; i++) {
        const int block = free_.front();
        forget(block);
        hold(block);
        blocks.push_back(block);
    }
    return true;
}

void BlockManager::publish(std::span<const int> tokens, std::span<const int> blocks, int nCached) {
    if (!shares_) return;
    Hash parent;
    for (int i = 0; i < nCached / kKvBlockPositions; i++) {
        Block& block = blocks_[blocks[i]];
        if (!block.isFull) {
            fill(blocks[i], parent, tokens.subspan(static_cast<size_t>(i) * kKvBlockPositions, kKvBlockPositions));
            block.isFull = true;
            block.own = chain(parent, block.tokens);
            // Of two blocks of equal contents the first is found.
            block.isFindable = fullBlocks_.emplace(block.own, blocks[i]).second;
        }
        parent = block.own;
    }
}

void BlockManager::release(std::span<const int> tokens, std::span<const int> blocks, int nCached) {
    publish(tokens, blocks, nCached);
    const int nFull = nCached / kKvBlockPositions;
    const std::span<const int> end = tokens.first(nCached).subspan(static_cast<size_t>(nFull) * kKvBlockPositions);
    if (shares_ && !end.empty()) {
        const Hash parent = nFull > 0 ? blocks_[blocks[nFull - 1]].own : Hash{};
        if (const auto older = partialBlocks_.find(parent); older != partialBlocks_.end()) forget(older->second);
        fill(blocks[nFull], parent, end);
        blocks_[blocks[nFull]].isFindable = true;
        partialBlocks_[parent] = blocks[nFull];
    }
    // From the end: a block is of no use without those before it, so they are reused later.
    for (size_t i = blocks.size(); i-- > 0;) {
        Block& block = blocks_[blocks[i]];
        DLLAMA_CHECK(block.references > 0);
        if (--block.references > 0) continue;
        // What holds nothing that can be found is reused first.
        block.place = free_.insert(block.isFindable ? free_.end() : free_.begin(), blocks[i]);
    }
}

void BlockManager::invalidate() {
    for (int block = 0; block < nBlocks(); block++) forget(block);
}

void BlockManager::hold(int block) {
    if (blocks_[block].references++ == 0) free_.erase(blocks_[block].place);
}

void BlockManager::fill(int block, const Hash& parent, std::span<const int> tokens) {
    blocks_[block].parent = parent;
    blocks_[block].tokens.assign(tokens.begin(), tokens.end());
}

/// The block may be overwritten from now on.
void BlockManager::forget(int block) {
    Block& b = blocks_[block];
    if (b.isFindable) b.isFull ? fullBlocks_.erase(b.own) : partialBlocks_.erase(b.parent);
    b.isFull = b.isFindable = false;
    b.tokens.clear();
}

}  // namespace dllama
