#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "format/model-config.hpp"
#include "format/tensor-source.hpp"

/// distributed-llama's own form of a .m file: integers in the header, tensors in a fixed order without names.
namespace dllama {

using HeaderPairs = std::vector<std::pair<int32_t, int32_t>>;

struct LegacyModel {
    ModelConfig config;
    DType weightType = DType::F32;
};

/// Throws FormatError, naming `origin`, for a missing or unknown key and for impossible values.
LegacyModel legacyModelFromHeader(const HeaderPairs& pairs, const std::string& origin);

/// The header for this model, in the order distributed-llama's converter writes it, or nothing if the header cannot
/// state every value (docs/file-format.md).
std::optional<HeaderPairs> legacyHeader(const ModelConfig& config, DType weightType);

/// All tensors of the file in their order; or no more than make up `maxBytes` and one, so that a small file that claims
/// to be a large model costs no more than its own size.
std::vector<TensorInfo> legacyTensors(const ModelConfig& config, DType weightType, size_t maxBytes = SIZE_MAX);

}  // namespace dllama
