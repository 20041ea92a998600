#include "base/output-file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>

#include "base/errors.hpp"

namespace dllama {

namespace fs = std::filesystem;

void flushOutput() {
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
        throw Error("the output cannot be written: {}", std::strerror(errno));
}

OutputFile::OutputFile(const std::string& path) : path_(path), target_(path) {
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (fs::exists(status)) target_ = fs::canonical(path, error).string();
    int fd = -1;
    if (fs::exists(status) && !fs::is_regular_file(status)) {
        fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    } else {
        std::random_device random;
        do {
            part_ = fmt::format("{}.{:08x}.part", target_, random());
            fd = ::open(part_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        } while (fd < 0 && errno == EEXIST);
        if (fd < 0) part_.clear();
    }
    if (fd >= 0) file_ = ::fdopen(fd, "wb");
    if (file_ == nullptr) fail();
}

OutputFile::~OutputFile() {
    if (file_ != nullptr) std::fclose(file_);
    if (!part_.empty()) ::unlink(part_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) fail();
}

void OutputFile::finish() {
    if (std::fflush(file_) != 0) fail();
    if (part_.empty()) return;
    if (::fsync(::fileno(file_)) != 0 || ::rename(part_.c_str(), target_.c_str()) != 0) fail();
    part_.clear();
}

void OutputFile::fail() const {
    throw FormatError("{}: cannot be written: {}", path_, std::strerror(errno));
}

}  // namespace dllama
