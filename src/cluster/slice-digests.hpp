#pragma once

#include <array>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/thread-pool.hpp"
#include "format/tensor-source.hpp"

namespace dllama {

/// Names slices of weights by their content, so that a root can tell whether what a worker kept is what its own file
/// holds. Without a secret XXH3-128: nothing may be damaged or mistaken. With one SHA-256: nobody can have made other
/// weights of the same digest either.
class SliceDigests {
  public:
    enum class Kind { Xxh128, Sha256 };
    /// `source` must outlive this; its bytes must not change.
    SliceDigests(const TensorSource& source, Kind kind) : source_(source), kind_(kind) {}

    /// Hex digits that stand for names, shapes and contents of all these slices. Any thread. A slice is read once in
    /// the life of this object. Uses the pool's threads if there is one; `progress`, called by one thread at a time, is
    /// told the bytes read. Throws FormatError if the source is damaged.
    std::string of(const std::vector<TensorSlice>& slices, ThreadPool* pool = nullptr,
                   const std::function<void(size_t done)>& progress = {});

  private:
    using Digest = std::array<unsigned char, 32>;  // of XXH3-128 the first 16
    Digest digest(std::span<const std::byte> bytes) const;

    const TensorSource& source_;
    const Kind kind_;
    std::mutex mutex_;
    std::unordered_map<std::string, Digest> known_;  // by name and shape
};

}  // namespace dllama
