#pragma once

#include <map>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "arch/architecture.hpp"
#include "format/tensor-source.hpp"

/// Models of real ones' shapes with random weights: what speed is measured on where no checkpoint can be downloaded.
namespace dllama {

/// "glm-4-9b", "intellect-3", ... Throws ConfigError, naming those it knows.
ModelConfig syntheticShape(const std::string& name);

/// Weight type "q40", "f16", ... Throws ConfigError.
DType syntheticType(const std::string& name);

/// The tensors of such a model in the order of its file.
std::vector<TensorInfo> syntheticTensors(const ModelConfig& config, DType type);

/// n values of a tensor with `cols` columns, as they are stored: random, of about 1 / sqrt(cols), so that activations
/// keep their size from layer to layer. Quantised blocks are made directly: random codes and one scale.
std::vector<std::byte> randomValues(const TensorInfo& tensor, int64_t n, std::mt19937_64& random);

/// A model that is in no file: a tensor is a stretch of a pool of random bytes, another one for each tensor. Models of
/// any size take the memory of the pools and of what the backend makes of them.
class SyntheticSource final : public TensorSource {
  public:
    SyntheticSource(const ModelConfig& config, DType type);

    const TensorInfo& info(std::string_view name) const override;
    bool has(std::string_view name) const override { return tensors_.contains(std::string(name)); }
    std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>& scratch) const override;
    bool isMapped(const TensorSlice&) const override { return false; }
    void release(const TensorSlice&) const override {}

  private:
    std::unordered_map<std::string, TensorInfo> tensors_;
    std::map<std::pair<std::string, int64_t>, std::vector<std::byte>> pools_;
};

}  // namespace dllama
