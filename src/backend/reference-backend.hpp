#pragma once

#include <memory>

#include "backend/backend.hpp"

namespace dllama {

/// Every operation in the plainest way: weights as floats, sums in double, one thread. What tests compare the fast
/// backends with. Like them it rounds activations to Q80 before they meet a quantised matrix.
std::unique_ptr<Backend> makeReferenceBackend();

/// Plain host memory as DeviceMemory, aligned to 64 bytes and zeroed; for backends whose device is the CPU.
DeviceMemory allocateHostMemory(size_t bytes);

}  // namespace dllama
