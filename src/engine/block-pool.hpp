#pragma once

#include <numeric>
#include <vector>

#include "base/errors.hpp"

namespace dllama {

/// The blocks of the KV cache that no sequence holds. The same block numbers are used in every layer and on every rank.
class BlockPool {
  public:
    explicit BlockPool(int nBlocks) : free_(nBlocks) { std::iota(free_.rbegin(), free_.rend(), 0); }

    int nFree() const { return static_cast<int>(free_.size()); }
    int take() {
        DLLAMA_CHECK(!free_.empty());
        const int block = free_.back();
        free_.pop_back();
        return block;
    }
    void give(int block) { free_.push_back(block); }

  private:
    std::vector<int> free_;
};

}  // namespace dllama
