#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mapped-file.hpp"
#include "format/model-config.hpp"
#include "format/tensor-source.hpp"

namespace dllama {

/// A .m file, mapped. Layout: docs/file-format.md. Every length and offset is checked when it is opened; a tensor's
/// hash is checked when the tensor is first read (distributed-llama's own files carry none).
class ModelFile final : public TensorSource {
  public:
    /// Throws FormatError: one line with the path, the tensor or field, and the reason.
    explicit ModelFile(const std::string& path);

    const ModelConfig& config() const { return config_; }
    /// The type of the matrices.
    DType weightType() const { return weightType_; }
    /// All tensors in the order of the file.
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    /// Hash of the description and of every tensor's hash (of sizes, where there are none): names the weights.
    uint64_t contentId() const { return contentId_; }
    /// The stored hash of a tensor, or 0 in a file without hashes.
    uint64_t tensorHash(std::string_view name) const;
    const std::string& path() const { return file_.path(); }
    size_t bytes() const { return file_.bytes().size(); }

    const TensorInfo& info(std::string_view name) const override;
    bool has(std::string_view name) const override;
    std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>& scratch) const override;
    bool isMapped(const TensorSlice& slice) const override;
    void release(const TensorSlice& slice) const override;

  private:
    struct Place {
        size_t index = 0;
        size_t offset = 0;
        uint64_t hash = 0;
    };

    void openLegacy(const std::vector<std::pair<int32_t, int32_t>>& pairs, size_t offset);
    void openDescribed(std::string_view json);
    const Place& place(std::string_view name) const;
    std::span<const std::byte> tensorBytes(const Place& place) const;
    void verify(const Place& place) const;

    MappedFile file_;
    ModelConfig config_;
    DType weightType_ = DType::F32;
    std::vector<TensorInfo> tensors_;
    std::unordered_map<std::string_view, Place> places_;  // keys point into tensors_
    std::unique_ptr<std::once_flag[]> verified_;          // one per tensor
    bool hashed_ = false;
    uint64_t contentId_ = 0;
};

/// Writes a .m file: legacy if legacyHeader() allows it and `tensors` are the legacy ones, else described. `fill` must
/// return the bytes of each tensor, asked for in order. The file appears under its name only when it is complete.
void writeModelFile(const std::string& path, const ModelConfig& config, DType weightType,
                    const std::vector<TensorInfo>& tensors,
                    const std::function<std::vector<std::byte>(const TensorInfo&)>& fill);

}  // namespace dllama
