#pragma once

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/errors.hpp"
#include "format/tensor-source.hpp"
#include "tensor/blocks.hpp"

namespace dllama {

/// Tensors in memory. Whole rows count as mapped; a part of the columns is gathered.
class MemorySource final : public TensorSource {
  public:
    void add(const std::string& name, DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values) {
        Entry& entry = entries_[name];
        entry.info = {name, dtype, rows, cols};
        entry.bytes.resize(entry.info.bytes());
        quantize(dtype, values.data(), entry.bytes.data(), rows * cols);
    }

    const TensorInfo& info(std::string_view name) const override { return entry(name).info; }
    bool has(std::string_view name) const override { return entries_.count(std::string(name)) > 0; }

    std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>& scratch) const override {
        const Entry& e = entry(slice.name);
        const size_t rowBytes = storedBytes(e.info.dtype, e.info.cols);
        if (isMapped(slice))
            return {e.bytes.data() + slice.rowBegin * rowBytes, static_cast<size_t>(slice.rows()) * rowBytes};
        const size_t begin = storedBytes(e.info.dtype, slice.colBegin);
        const size_t width = storedBytes(e.info.dtype, slice.cols());
        scratch.resize(slice.rows() * width);
        for (int64_t r = 0; r < slice.rows(); r++)
            std::memcpy(scratch.data() + r * width, e.bytes.data() + (slice.rowBegin + r) * rowBytes + begin, width);
        return scratch;
    }

    bool isMapped(const TensorSlice& slice) const override { return slice.cols() == entry(slice.name).info.cols; }
    void release(const TensorSlice&) const override {}

  private:
    struct Entry {
        TensorInfo info;
        std::vector<std::byte> bytes;
    };
    const Entry& entry(std::string_view name) const {
        const auto found = entries_.find(std::string(name));
        if (found == entries_.end()) throw FormatError("memory: no tensor {}", name);
        return found->second;
    }
    std::map<std::string, Entry> entries_;
};

}  // namespace dllama
