#pragma once

#include <cstddef>

#include "backend/backend.hpp"

namespace dllama {

/// Zeroed memory, aligned to 64 bytes. Large pieces are made of huge pages where the system has them: a step walks
/// through all weights, which is hard on the page tables.
DeviceMemory allocateCpuMemory(size_t bytes);

/// Memory that grows to the largest size asked for and is then reused step after step. Its content is lost when it
/// grows.
class Scratch {
  public:
    template <typename T>
    T* get(size_t count) {
        if (count * sizeof(T) > bytes_) grow(count * sizeof(T));
        return reinterpret_cast<T*>(memory_.get());
    }

  private:
    void grow(size_t bytes);
    size_t bytes_ = 0;
    DeviceMemory memory_;
};

}  // namespace dllama
