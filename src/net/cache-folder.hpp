#pragma once

#include <cstdint>
#include <string>

#include "net/socket.hpp"

namespace dllama {

/// A worker's folder of slices of earlier sessions, which all workers of a user may share:
///
///     <key>.slices           whole, never written again: replaced or removed, but stays readable for who has it mapped
///     <key>.<random>.part    being received by one worker, which holds a lock on it; without a lock its writer is gone
///
/// Which were used last is told by the files' times; those that were not used for the longest time go first. Links and
/// whatever else is not a regular file are left alone.

/// A file of the folder that is being written. Nobody else writes to it or removes it, whatever its name is.
class CachePart {
  public:
    /// A new file of mode 0600 in the folder, which is made if there is none. Throws ConfigError.
    CachePart(const std::string& folder, const std::string& key);
    CachePart(const CachePart&) = delete;
    CachePart& operator=(const CachePart&) = delete;
    /// Removes it, unless it was published.
    ~CachePart();

    int fd() const { return file_.fd(); }
    const std::string& path() const { return path_; }
    /// Gives it the name of a whole one, at once for all who look, in place of an older one of that name. Throws
    /// ConfigError if that cannot be.
    void publish(const std::string& path);

  private:
    Socket file_;
    std::string path_;
    bool published_ = false;
};

/// A whole file, open for reading: -1 if there is none. Throws ConfigError for what is not a regular file.
Socket openCached(const std::string& path);
/// Marks the open file as just used.
void touchCached(int fd);
/// Removes parts whose writers are gone, then whole files until what is in the folder takes at most `bytes`. Parts of
/// other workers count, but stay.
void keepCacheWithin(const std::string& folder, uint64_t bytes);
/// Removes parts whose writers are gone: all that kill -9 leaves behind.
void dropAbandonedParts(const std::string& folder);
/// Removes the file that was not used for the longest time; false if there is none.
bool dropOldestCached(const std::string& folder);

}  // namespace dllama
