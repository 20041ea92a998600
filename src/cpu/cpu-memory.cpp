#include "cpu/cpu-memory.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "backend/reference-backend.hpp"

namespace dllama {

DeviceMemory allocateCpuMemory(size_t bytes) {
    constexpr size_t kHugePage = size_t{2} << 20;
    if (bytes < kHugePage) return allocateHostMemory(bytes);
    // One page more than needed, so that the memory can begin at a page's border.
    const size_t mapped = bytes + kHugePage;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    const uintptr_t start = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) / kHugePage * kHugePage;
#if defined(MADV_HUGEPAGE)
    madvise(reinterpret_cast<void*>(start), bytes, MADV_HUGEPAGE);
#endif
    return {reinterpret_cast<std::byte*>(start), [base, mapped](std::byte*) { munmap(base, mapped); }};
}

void Scratch::grow(size_t bytes) {
    memory_.reset();
    bytes_ = 0;
    memory_ = allocateCpuMemory(bytes);
    bytes_ = bytes;
}

}  // namespace dllama
