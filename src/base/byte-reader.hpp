#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "base/errors.hpp"

namespace dllama {

static_assert(std::endian::native == std::endian::little, "the file formats are little-endian and read as they are");

/// Reads a file's bytes in order and never past their end. It copies nothing but single values: the spans and texts it
/// returns point into the bytes it was given, which must outlive them.
/// `what` is the thing being read, for the message of the FormatError thrown when too few bytes are left:
/// "model.m: header size needs 4 bytes at offset 4, the file has 6 bytes".
class ByteReader {
  public:
    ByteReader(std::span<const std::byte> bytes, std::string fileName)
        : bytes_(bytes), fileName_(std::move(fileName)) {}

    /// The next value of type T, unaligned, little-endian.
    template <typename T>
    T read(std::string_view what) {
        static_assert(std::is_arithmetic_v<T>);
        const std::span<const std::byte> source = bytes(sizeof(T), what);
        T value;
        std::memcpy(&value, source.data(), sizeof(T));
        return value;
    }

    /// The next n bytes.
    std::span<const std::byte> bytes(uint64_t n, std::string_view what) {
        if (n > remaining()) {
            throw FormatError("{}: {} needs {} bytes at offset {}, the file has {} bytes", fileName_, what, n,
                              position_, bytes_.size());
        }
        const std::span<const std::byte> result = bytes_.subspan(position_, static_cast<size_t>(n));
        position_ += static_cast<size_t>(n);
        return result;
    }

    /// The next n bytes as text (not checked to be UTF-8).
    std::string_view text(uint64_t n, std::string_view what) {
        const std::span<const std::byte> source = bytes(n, what);
        return {reinterpret_cast<const char*>(source.data()), source.size()};
    }

    /// Goes to an offset from the start of the file; its end is allowed.
    void seek(uint64_t offset, std::string_view what) {
        if (offset > bytes_.size()) {
            throw FormatError("{}: {} lies at offset {}, the file has {} bytes", fileName_, what, offset,
                              bytes_.size());
        }
        position_ = static_cast<size_t>(offset);
    }

    size_t position() const { return position_; }
    size_t remaining() const { return bytes_.size() - position_; }
    size_t size() const { return bytes_.size(); }
    const std::string& fileName() const { return fileName_; }

  private:
    std::span<const std::byte> bytes_;
    std::string fileName_;
    size_t position_ = 0;
};

}  // namespace dllama
