#pragma once

#include "base/thread-pool.hpp"

namespace dllama {

/// Bytes a second that the pool's threads read from memory together: best of a few passes over a buffer much larger
/// than the caches. Takes about a second.
double measureReadBandwidth(ThreadPool& pool);

}  // namespace dllama
