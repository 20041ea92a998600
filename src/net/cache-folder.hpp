#pragma once

#include <cstdint>
#include <string>

namespace dllama {

/// A worker's folder of slices of earlier sessions (*.slices). Which were used last is told by the files' times; those
/// that were not used for the longest time go first. A file that another worker has mapped stays readable for it.

/// Marks the open file as just used.
void touchCached(int fd);
/// Removes files until the rest takes at most `bytes`.
void keepCacheWithin(const std::string& folder, uint64_t bytes);
/// Removes the file that was not used for the longest time; false if there is none.
bool dropOldestCached(const std::string& folder);

}  // namespace dllama
