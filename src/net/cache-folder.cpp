#include "net/cache-folder.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <vector>

namespace dllama {

namespace fs = std::filesystem;

namespace {

struct CachedFile {
    fs::file_time_type used;
    uint64_t bytes;
    fs::path path;
    bool operator<(const CachedFile& other) const { return used < other.used; }
};

/// The oldest first. What vanishes meanwhile, by another worker's hand, is left out.
std::vector<CachedFile> cachedFiles(const std::string& folder) {
    std::vector<CachedFile> files;
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
        if (entry.path().extension() != ".slices") continue;
        const auto used = entry.last_write_time(error);
        const uint64_t bytes = error ? 0 : entry.file_size(error);
        if (!error) files.push_back({used, bytes, entry.path()});
    }
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace

void touchCached(int fd) {
    ::futimens(fd, nullptr);
}

void keepCacheWithin(const std::string& folder, uint64_t bytes) {
    const std::vector<CachedFile> files = cachedFiles(folder);
    uint64_t total = 0;
    for (const CachedFile& file : files) total += file.bytes;
    std::error_code error;
    for (const CachedFile& file : files) {
        if (total <= bytes) return;
        fs::remove(file.path, error);
        total -= file.bytes;
    }
}

bool dropOldestCached(const std::string& folder) {
    const std::vector<CachedFile> files = cachedFiles(folder);
    std::error_code error;
    return !files.empty() && fs::remove(files[0].path, error);
}

}  // namespace dllama
