#pragma once

#include <memory>

#include "backend/backend.hpp"
#include "base/cpu-features.hpp"
#include "base/thread-pool.hpp"

namespace dllama {

/// The CPU as a device. Results do not depend on the number of threads, nor on what else is in a batch. `isa` must be
/// supported (chooseIsa() gives the best); the pool outlives the backend.
std::unique_ptr<Backend> makeCpuBackend(ThreadPool& pool, Isa isa);

}  // namespace dllama
