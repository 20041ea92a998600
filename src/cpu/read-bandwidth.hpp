#pragma once

#include <cstddef>

#include "base/thread-pool.hpp"

namespace dllama {

/// Eight times the last cache, at least 512 MB, at most 2 GB and a quarter of the free memory: what is read over and
/// over in such a buffer comes from memory.
size_t bytesBeyondCaches();

/// Bytes a second that the pool's threads read from memory together: what the best of several ways to read gives, on
/// 2 MB pages over
/// bytesBeyondCaches(). Takes about a second.
double measureReadBandwidth(ThreadPool& pool);

}  // namespace dllama
