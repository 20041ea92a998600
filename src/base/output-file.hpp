#pragma once

#include <cstdio>
#include <span>
#include <string>

namespace dllama {

/// Sends on what was printed. Throws Error if nobody takes it: a full disk, or a reader that has gone away.
void flushOutput();

/// A file that appears under its name when it is complete; what was there stays until then. Written as a new file
/// beside it (a link is followed to where it points). A device or a pipe is written to directly.
class OutputFile {
  public:
    /// Throws FormatError, naming the path, as do all functions here.
    explicit OutputFile(const std::string& path);
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    /// Removes what is not complete.
    ~OutputFile();

    void write(std::span<const std::byte> bytes);
    /// On the disk and under its name.
    void finish();

  private:
    [[noreturn]] void fail() const;

    std::string path_;    // that the user gave
    std::string target_;  // that it leads to
    std::string part_;    // empty: written directly, or finished
    std::FILE* file_ = nullptr;
};

}  // namespace dllama
