#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <span>
#include <utility>
#include <vector>

namespace dllama {

/// Hands out the blocks of the paged KV cache and knows what they hold: the prefix cache. The same block numbers are
/// used in every layer and on every rank. Pure bookkeeping, no tensors.
///
/// A full block is found again by a hash of its tokens and of all blocks before it, so that sequences with a common
/// prefix hold it once. Blocks that no sequence holds keep their contents until they are needed for something else,
/// least recently used first. Not thread-safe.
class BlockManager {
  public:
    /// Without `shares` nothing is ever found again: for architectures whose cached positions depend on later tokens
    /// (a prefix mask).
    BlockManager(int nBlocks, bool shares);

    struct Prefix {
        std::vector<int> blocks;
        int nCached = 0;  // positions of them that hold the tokens asked for
    };
    /// The longest cached prefix of `tokens`. The caller holds a reference on each of its blocks and may write behind
    /// nCached: a block that is only partly used is handed out to one caller alone.
    Prefix acquire(std::span<const int> tokens);
    /// Appends blocks until nPositions fit. False, and nothing changes, if there are not enough that nobody holds.
    bool grow(std::vector<int>& blocks, int nPositions);
    /// Makes the full blocks among the first nCached positions available to others. `blocks` are held by the caller
    /// and hold the first nCached of `tokens`.
    void publish(std::span<const int> tokens, std::span<const int> blocks, int nCached);
    /// Publishes and gives the references back.
    void release(std::span<const int> tokens, std::span<const int> blocks, int nCached);
    /// Forgets what all blocks hold: after a rank was lost with its cache. References stay.
    void invalidate();

    int nBlocks() const { return static_cast<int>(blocks_.size()); }
    /// Blocks that nobody holds, with contents or without.
    int nFree() const { return static_cast<int>(free_.size()); }
    /// Blocks that grow() would add.
    static int missing(std::span<const int> blocks, int nPositions);
    /// Sequences that hold a block.
    int references(int block) const { return blocks_[block].references; }

  private:
    struct Hash {
        uint64_t low = 0, high = 0;
        auto operator<=>(const Hash&) const = default;
    };
    struct Block {
        int references = 0;
        bool isFull = false;             // it holds kKvBlockPositions tokens behind `parent`
        bool isFindable = false;         // fullBlocks_ or partialBlocks_ names it
        Hash parent, own;                // of the blocks before it; with it (full blocks only)
        std::vector<int> tokens;         // what it holds, to tell equal hashes from equal contents
        std::list<int>::iterator place;  // in free_, while references == 0
    };

    Hash chain(const Hash& parent, std::span<const int> tokens) const;
    void hold(int block);
    void forget(int block);
    void fill(int block, const Hash& parent, std::span<const int> tokens);

    const bool shares_;
    uint64_t seed_;  // drawn anew by each process: nobody can prepare texts of equal hashes
    std::vector<Block> blocks_;
    std::list<int> free_;                // the next to be reused first
    std::map<Hash, int> fullBlocks_;     // by own hash
    std::map<Hash, int> partialBlocks_;  // by the parent's hash: the latest end of a released sequence
};

}  // namespace dllama
