#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace dllama {

/// A whole file mapped read-only. Movable; the mapping lives as long as the object.
class MappedFile {
  public:
    /// Throws FormatError, naming the path, if the file is missing, unreadable, a directory or empty.
    explicit MappedFile(const std::string& path);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&&) = delete;
    ~MappedFile();

    std::span<const std::byte> bytes() const { return {data_, size_}; }
    const std::string& path() const { return path_; }
    /// Tells the kernel that these bytes will not be needed again soon; they stay readable.
    void release(std::span<const std::byte> part) const;

  private:
    std::string path_;
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace dllama
