#include "model/embedding-table.hpp"

#include <cstring>

#include "base/errors.hpp"

namespace dllama {

namespace {

constexpr const char* kName = "token_embedding.weight";

}  // namespace

EmbeddingTable::EmbeddingTable(const TensorSource& source)
    : info_(source.info(kName)), table_(source.read(source.whole(kName), scratch_)) {}

std::vector<std::byte> EmbeddingTable::rows(std::span<const int> tokens) const {
    const size_t rowBytes = storedBytes(info_.dtype, info_.cols);
    std::vector<std::byte> rows(tokens.size() * rowBytes);
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] < 0 || tokens[i] >= info_.rows)
            throw ConfigError("token id {} is outside the vocabulary of {}", tokens[i], info_.rows);
        std::memcpy(rows.data() + i * rowBytes, table_.data() + tokens[i] * rowBytes, rowBytes);
    }
    return rows;
}

}  // namespace dllama
