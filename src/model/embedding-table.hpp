#pragma once

#include <span>

#include "arch/architecture.hpp"
#include "format/tensor-source.hpp"

namespace dllama {

/// The token embeddings, read row by row from where they are stored: a step needs only its own tokens' rows, so the
/// table takes no memory beyond the file's pages. `source` must outlive it.
class EmbeddingTable {
  public:
    explicit EmbeddingTable(const TensorSource& source);

    DType dtype() const { return info_.dtype; }
    int vocabSize() const { return static_cast<int>(info_.rows); }
    int dim() const { return static_cast<int>(info_.cols); }
    /// The stored rows of `tokens`, one after the other. Throws ConfigError for an id outside the vocabulary.
    std::vector<std::byte> rows(std::span<const int> tokens) const;

  private:
    const TensorInfo& info_;
    std::vector<std::byte> scratch_;
    std::span<const std::byte> table_;
};

}  // namespace dllama
