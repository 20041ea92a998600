#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "format/tokenizer-file.hpp"

namespace dllama {

/// Byte-pair encoding of one piece of text: of all neighbouring pairs that may merge, the best, at equal rank the
/// leftmost, is merged until none is left. n log n in the piece's length: pairs wait in a heap, symbols form a linked
/// list. Which pair is best:
/// - Bpe without merges: the lower id of the merged bytes (tiktoken's rule);
/// - Bpe with merges: the earlier in the list;
/// - ScoredPieces: the higher score of the merged text (sentencepiece's rule). Symbols are characters first; those that
///   remain without a token become bytes.
class BpeMerger {
  public:
    /// `file` must outlive the object. `ordinary` tells which ids may come out of a text.
    /// Throws FormatError if a byte has no token or a merge leads to none.
    BpeMerger(const TokenizerFile& file, const std::vector<bool>& ordinary);

    /// Memory that calls of one thread share, so that a piece costs no allocation.
    struct Scratch {
        struct Symbol {
            uint32_t length = 0;    // bytes; 0: merged into the one before
            uint32_t previous = 0;  // start of the symbol before
            int id = -1;
        };
        struct Candidate {
            uint64_t order;  // rank, then start of the left symbol
            uint32_t middle;
            uint32_t end;
        };
        std::vector<Symbol> symbols;  // indexed by the byte where the symbol starts
        std::vector<Candidate> heap;
    };

    /// Appends the ids of `piece`, which is shorter than 4 GiB.
    void encode(std::string_view piece, Scratch& scratch, std::vector<int>& ids) const;

  private:
    static constexpr uint32_t kNoRank = UINT32_MAX;
    struct Merge {
        uint32_t rank;
        int id;
    };

    int find(std::string_view text) const;
    uint32_t rankOf(std::string_view piece, const Scratch& scratch, uint32_t left, uint32_t middle, uint32_t end) const;
    int mergedId(std::string_view text, uint32_t rank) const;
    void addCandidate(std::string_view piece, Scratch& scratch, uint32_t left, uint32_t middle) const;
    void mergeAll(std::string_view piece, Scratch& scratch) const;

    bool byCharacters_ = false;
    bool wholeFirst_ = false;
    size_t longestToken_ = 0;
    std::unordered_map<std::string_view, int> idOf_;
    std::array<int, 256> byteIds_{};
    std::unordered_map<uint64_t, Merge> merges_;  // left id << 32 | right id
    std::vector<int> idOfRank_;                   // with merges
    std::vector<uint32_t> rankOfId_;              // ScoredPieces; equal scores have equal ranks
};

}  // namespace dllama
