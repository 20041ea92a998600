#include "net/cache-folder.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <vector>

namespace dllama {

namespace fs = std::filesystem;

namespace {

constexpr int kSafely = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;  // a pipe in the place of a file must not block

struct CachedFile {
    fs::file_time_type used;
    uint64_t bytes;
    fs::path path;
    bool operator<(const CachedFile& other) const { return used < other.used; }
};

/// The regular files with this extension, the oldest first. What vanishes meanwhile, by another worker's hand, is left
/// out.
std::vector<CachedFile> filesOf(const std::string& folder, const char* extension) {
    std::vector<CachedFile> files;
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
        std::error_code gone;
        if (it->path().extension() != extension || it->symlink_status(gone).type() != fs::file_type::regular) continue;
        const auto used = it->last_write_time(gone);
        const uint64_t bytes = gone ? 0 : it->file_size(gone);
        if (!gone) files.push_back({used, bytes, it->path()});
    }
    std::sort(files.begin(), files.end());
    return files;
}

uint64_t bytesOf(const std::vector<CachedFile>& files) {
    uint64_t total = 0;
    for (const CachedFile& file : files) total += file.bytes;
    return total;
}

bool lock(int fd) {
    return ::flock(fd, LOCK_EX | LOCK_NB) == 0;
}

}  // namespace

CachePart::CachePart(const std::string& folder, const std::string& key) {
    std::error_code error;
    fs::create_directories(folder, error);
    std::random_device random;
    for (int attempt = 0; attempt < 8; attempt++) {
        path_ = fmt::format("{}/{}.{:08x}.part", folder, key, random());
        file_ = Socket(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | kSafely, 0600));
        if (file_.fd() < 0 && errno == EEXIST) continue;
        if (file_.fd() < 0) throw ConfigError("{}: {}", path_, std::strerror(errno));
        // Between open() and lock() it looked abandoned: another worker may just have removed it. A file system that
        // has no locks has nobody who could.
        struct stat info {};
        if ((lock(file_.fd()) || errno != EWOULDBLOCK) && ::fstat(file_.fd(), &info) == 0 && info.st_nlink > 0) return;
    }
    throw ConfigError("{}: no file of an own name can be made there", folder);
}

CachePart::~CachePart() {
    if (!published_) ::unlink(path_.c_str());
}

void CachePart::publish(const std::string& path) {
    if (::rename(path_.c_str(), path.c_str()) != 0) throw ConfigError("{}: {}", path, std::strerror(errno));
    published_ = true;
    file_ = Socket();  // and with it the lock
}

Socket openCached(const std::string& path) {
    Socket file(::open(path.c_str(), O_RDONLY | kSafely));
    if (file.fd() < 0 && errno == ENOENT) return file;
    struct stat info {};
    if (file.fd() < 0 || ::fstat(file.fd(), &info) != 0) throw ConfigError("{}: {}", path, std::strerror(errno));
    if (!S_ISREG(info.st_mode)) throw ConfigError("{}: not a file", path);
    return file;
}

void touchCached(int fd) {
    ::futimens(fd, nullptr);
}

void keepCacheWithin(const std::string& folder, uint64_t bytes) {
    dropAbandonedParts(folder);
    const std::vector<CachedFile> files = filesOf(folder, ".slices");
    uint64_t total = bytesOf(files) + bytesOf(filesOf(folder, ".part"));
    std::error_code error;
    for (const CachedFile& file : files) {
        if (total <= bytes) return;
        fs::remove(file.path, error);
        total -= file.bytes;
    }
}

void dropAbandonedParts(const std::string& folder) {
    for (const CachedFile& part : filesOf(folder, ".part")) {
        const Socket file(::open(part.path.c_str(), O_RDWR | kSafely));
        if (file.fd() >= 0 && lock(file.fd())) ::unlink(part.path.c_str());
    }
}

bool dropOldestCached(const std::string& folder) {
    const std::vector<CachedFile> files = filesOf(folder, ".slices");
    std::error_code error;
    return !files.empty() && fs::remove(files[0].path, error);
}

}  // namespace dllama
