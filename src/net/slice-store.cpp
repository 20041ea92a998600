#include "net/slice-store.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>

#include "base/errors.hpp"
#include "format/model-layout.hpp"

namespace dllama {

namespace {

constexpr char kMagic[9] = "DLSLICES";
constexpr size_t kFixedHeader = 24;
constexpr size_t kAlignment = 64;

size_t aligned(size_t offset) {
    return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::vector<TensorInfo> describeTensors(const Architecture& arch, DType weightType,
                                        const std::unordered_map<std::string, DType>& exceptions) {
    std::vector<TensorInfo> tensors;
    for (TensorDecl& decl : declareTensors(arch)) {
        const auto exception = exceptions.find(decl.name);
        const DType dtype = exception != exceptions.end() ? exception->second : decl.isWeight ? weightType : DType::F32;
        tensors.push_back({std::move(decl.name), dtype, decl.rows, decl.cols});
    }
    return tensors;
}

uint64_t slicesKey(uint64_t modelId, const std::vector<TensorSlice>& slices) {
    std::string text = fmt::format("{:016x}", modelId);
    for (const TensorSlice& s : slices)
        text += fmt::format(" {} {} {} {} {}", s.name, s.rowBegin, s.rowEnd, s.colBegin, s.colEnd);
    return XXH3_64bits(text.data(), text.size());
}

SliceStore::SliceStore(std::vector<TensorInfo> tensors, std::vector<TensorSlice> slices, uint64_t key,
                       const std::string& cacheDir, uint64_t cacheLimit)
    : tensors_(std::move(tensors)), key_(key), cacheDir_(cacheDir), cacheLimit_(cacheLimit) {
    for (const TensorInfo& tensor : tensors_) infos_.emplace(tensor.name, &tensor);
    size_t offset = aligned(kFixedHeader + sizeof(uint64_t) * slices.size());
    slices_.reserve(slices.size());
    for (TensorSlice& slice : slices) {
        const size_t bytes = static_cast<size_t>(slice.rows()) * storedBytes(info(slice.name).dtype, slice.cols());
        slices_.push_back({std::move(slice), offset, bytes});
        offset = aligned(offset + bytes);
        totalBytes_ += bytes;
    }
    for (const Held& held : slices_) helds_.emplace(held.slice.name, &held);
    mappedBytes_ = offset;

    if (!cacheDir.empty()) {
        path_ = fmt::format("{}/{:016x}.slices", cacheDir, key_);
        dropAbandonedParts(cacheDir);
        if (!openWhole()) startPart();
    } else {
        data_ = map(-1, PROT_READ | PROT_WRITE);
    }
}

SliceStore::~SliceStore() {
    if (data_ != nullptr) ::munmap(data_, mappedBytes_);
}

/// A file of its own in the cache folder, with room for all slices.
void SliceStore::startPart() {
    if (cacheLimit_ > 0) {
        if (mappedBytes_ > cacheLimit_)
            throw ConfigError("{} MB of weights, the cache may have {} MB", mappedBytes_ >> 20, cacheLimit_ >> 20);
        keepCacheWithin(cacheDir_, cacheLimit_ - mappedBytes_);
    }
    part_ = std::make_unique<CachePart>(cacheDir_, fmt::format("{:016x}", key_));
    int failure = 0;
    do failure = ::posix_fallocate(part_->fd(), 0, static_cast<off_t>(mappedBytes_));
    while (failure == EINTR || (failure == ENOSPC && dropOldestCached(cacheDir_)));
    if (failure != 0)
        throw ConfigError("{}: no room for {} MB: {}", part_->path(), mappedBytes_ >> 20, std::strerror(failure));
    data_ = map(part_->fd(), PROT_READ | PROT_WRITE);
}

std::byte* SliceStore::map(int fd, int protection) const {
    const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* data = ::mmap(nullptr, mappedBytes_, protection, flags, fd, 0);
    if (data == MAP_FAILED)
        throw ConfigError("no memory for {} MB of weights: {}", mappedBytes_ >> 20, std::strerror(errno));
    return static_cast<std::byte*>(data);
}

/// Whether a cache file is one of these slices; with `hashes`, also whether its bytes are these and undamaged.
bool SliceStore::isWhole(const std::byte* data, const std::vector<uint64_t>* hashes) const {
    uint64_t key = 0, count = 0;
    std::memcpy(&key, data + 8, 8);
    std::memcpy(&count, data + 16, 8);
    if (std::memcmp(data, kMagic, 8) != 0 || key != key_ || count != slices_.size()) return false;
    for (size_t i = 0; i < slices_.size() && hashes != nullptr; i++)
        if (XXH3_64bits(data + slices_[i].offset, slices_[i].bytes) != (*hashes)[i]) return false;
    return true;
}

/// Reads from the cache file from now on. False if there is none or it is not whole: it is then received anew.
bool SliceStore::openWhole(const std::vector<uint64_t>* hashes) {
    const Socket file = openCached(path_);
    if (file.fd() < 0 || ::lseek(file.fd(), 0, SEEK_END) != static_cast<off_t>(mappedBytes_)) return false;
    touchCached(file.fd());
    std::byte* data = map(file.fd(), PROT_READ);
    complete_ = isWhole(data, hashes);
    if (complete_) std::swap(data, data_);
    if (data != nullptr) ::munmap(data, mappedBytes_);
    return complete_;
}

std::span<std::byte> SliceStore::room(size_t index) {
    DLLAMA_CHECK(!complete_ && index < slices_.size());
    return {data_ + slices_[index].offset, slices_[index].bytes};
}

void SliceStore::forget() {
    if (!path_.empty()) ::unlink(path_.c_str());
}

std::string SliceStore::finish(const std::vector<uint64_t>& hashes) {
    DLLAMA_CHECK(!complete_ && hashes.size() == slices_.size());
    const uint64_t count = slices_.size();
    std::memcpy(data_, kMagic, 8);
    std::memcpy(data_ + 8, &key_, 8);
    std::memcpy(data_ + 16, &count, 8);
    std::memcpy(data_ + kFixedHeader, hashes.data(), 8 * hashes.size());
    const std::unique_ptr<CachePart> part = std::move(part_);
    std::string failure;
    try {
        if (part && !openWhole(&hashes)) {
            // The file appears under its name only when it is on the disk in whole.
            if (::msync(data_, mappedBytes_, MS_SYNC) != 0) throw ConfigError("{}: {}", path_, std::strerror(errno));
            part->publish(path_);
            // Other workers of this machine may have filled the folder meanwhile.
            if (cacheLimit_ > 0) keepCacheWithin(cacheDir_, cacheLimit_);
        }
    } catch (const ConfigError& error) {
        failure = error.what();  // the slices stay where they are, in a file without a name
    }
    complete_ = true;
    return failure;
}

const TensorInfo& SliceStore::info(std::string_view name) const {
    const auto found = infos_.find(name);
    if (found == infos_.end()) throw FormatError("the root's model: there is no tensor {}", name);
    return *found->second;
}

bool SliceStore::has(std::string_view name) const {
    return infos_.contains(name);
}

const SliceStore::Held& SliceStore::held(const TensorSlice& slice) const {
    const auto found = helds_.find(slice.name);
    if (found == helds_.end()) throw FormatError("tensor {} is not among this rank's slices", slice.name);
    const TensorSlice& have = found->second->slice;
    if (slice.rowBegin < have.rowBegin || slice.rowEnd > have.rowEnd || slice.colBegin < have.colBegin ||
        slice.colEnd > have.colEnd)
        throw FormatError("tensor {}: rows {} to {}, columns {} to {} are not in this rank's slice", slice.name,
                          slice.rowBegin, slice.rowEnd, slice.colBegin, slice.colEnd);
    return *found->second;
}

std::span<const std::byte> SliceStore::read(const TensorSlice& slice, std::vector<std::byte>& scratch) const {
    const Held& have = held(slice);
    DLLAMA_CHECK(complete_ && !have.released);
    // The held slice is a small tensor of its own; the wanted one lies at a place within it.
    const TensorInfo small{slice.name, info(slice.name).dtype, have.slice.rows(), have.slice.cols()};
    const TensorSlice within{slice.name, slice.rowBegin - have.slice.rowBegin, slice.rowEnd - have.slice.rowBegin,
                             slice.colBegin - have.slice.colBegin, slice.colEnd - have.slice.colBegin};
    return sliceBytes(small, {data_ + have.offset, have.bytes}, within, scratch);
}

bool SliceStore::isMapped(const TensorSlice& slice) const {
    const Held& have = held(slice);
    return slice.cols() == have.slice.cols();
}

void SliceStore::release(const TensorSlice& slice) const {
    const Held& have = held(slice);
    if (have.slice.rows() != slice.rows() || have.slice.cols() != slice.cols()) return;
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t begin = (have.offset + page - 1) / page * page, end = (have.offset + have.bytes) / page * page;
    if (end <= begin) return;
    have.released = path_.empty();
    ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace dllama
