#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "arch/architecture.hpp"
#include "format/tensor-source.hpp"
#include "net/cache-folder.hpp"

namespace dllama {

/// Every declared tensor as it is stored in the model file: what a worker must know to take slices of it.
std::vector<TensorInfo> describeTensors(const Architecture& arch, DType weightType,
                                        const std::unordered_map<std::string, DType>& exceptions);

/// The slices of one rank, received from the root: in memory, or in a file of the cache folder that the next start
/// finds again. Layout of the file (little-endian):
///
///     0    "DLSLICES", u64 key, u64 number of slices n, n x u64 XXH3 of each slice
///     ...  the slices, each aligned to 64 bytes
///
/// As a TensorSource it tells the whole tensors' shapes and reads what lies within the rank's slices.
class SliceStore final : public TensorSource {
  public:
    /// `key` names the contents: model and slices. Without `cacheDir` everything stays in memory. Opens a complete
    /// file of an earlier start, or of another worker, if there is one: whether its content is right the root says.
    /// Else makes room for a new one: files that were not used for the longest time go where the disk is full, or where
    /// the folder would grow beyond `cacheLimit` bytes (0: no limit). Throws ConfigError if there is no room.
    SliceStore(std::vector<TensorInfo> tensors, std::vector<TensorSlice> slices, uint64_t key,
               const std::string& cacheDir, uint64_t cacheLimit = 0);
    ~SliceStore() override;

    bool complete() const { return complete_; }
    size_t nSlices() const { return slices_.size(); }
    size_t bytes() const { return totalBytes_; }
    /// Room for a slice that is being received.
    std::span<std::byte> room(size_t index);
    /// All slices have arrived with these hashes: the store may be read, and the next start will find it. Where another
    /// worker has kept the same slices meanwhile, they are read from its file, so that memory holds them once. Returns
    /// why the next start will not find them, or "".
    std::string finish(const std::vector<uint64_t>& hashes);

    /// The next start shall not find these slices.
    void forget();

    const TensorInfo& info(std::string_view name) const override;
    bool has(std::string_view name) const override;
    std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>& scratch) const override;
    bool isMapped(const TensorSlice& slice) const override;
    void release(const TensorSlice& slice) const override;

  private:
    struct Held {
        TensorSlice slice;
        size_t offset = 0;
        size_t bytes = 0;
        mutable bool released = false;  // its memory was given back and holds nothing
    };

    bool openWhole(const std::vector<uint64_t>* hashes = nullptr);
    void startPart();
    std::byte* map(int fd, int protection) const;
    bool isWhole(const std::byte* data, const std::vector<uint64_t>* hashes) const;
    const Held& held(const TensorSlice& slice) const;

    std::vector<TensorInfo> tensors_;
    std::unordered_map<std::string_view, const TensorInfo*> infos_;
    std::vector<Held> slices_;
    std::unordered_map<std::string_view, const Held*> helds_;
    uint64_t key_ = 0;
    std::string cacheDir_;
    uint64_t cacheLimit_ = 0;
    std::string path_;                 // of the cache file; empty: memory only
    std::unique_ptr<CachePart> part_;  // while it is received
    size_t totalBytes_ = 0;
    size_t mappedBytes_ = 0;
    std::byte* data_ = nullptr;
    bool complete_ = false;
};

/// Names the contents of a rank's slices: which model and which parts of it.
uint64_t slicesKey(uint64_t modelId, const std::vector<TensorSlice>& slices);

}  // namespace dllama
