#pragma once

#include <functional>

#include "gpu/cuda-check.hpp"

namespace dllama::gpu {

/// Scratch memory of operations, by what it holds.
enum class Scratch {
    Staged,
    RowScale,
    Gate,
    Up,
    Logits,
    Arrived,
    TopKeys,
    TopParts,
    Partial,
    PartialStats,
    Hidden,
    HiddenQ80,
    HiddenScales,
    ExpertOut,
    PairOut,
    Sorting,
    kCount
};

/// One piece of device memory for each Scratch. A piece grows in the first step of a shape, which is never recorded,
/// and keeps its address from then on.
class ScratchArena {
  public:
    /// `beforeMove` is called before a piece moves: nothing that runs or is recorded may still know its address.
    explicit ScratchArena(std::function<void()> beforeMove) : beforeMove_(std::move(beforeMove)) {}

    /// Room for n values of T. Throws CudaError.
    template <typename T>
    T* get(Scratch which, size_t n) {
        return reinterpret_cast<T*>(bytes(which, n * sizeof(T)));
    }

  private:
    struct Piece {
        size_t bytes = 0;
        DeviceMemory data;
    };

    std::byte* bytes(Scratch which, size_t bytes) {
        Piece& piece = pieces_[static_cast<size_t>(which)];
        if (bytes > piece.bytes) {
            beforeMove_();
            piece.data = nullptr;
            piece.data = allocateDevice(bytes);
            piece.bytes = bytes;
        }
        return piece.data.get();
    }

    std::function<void()> beforeMove_;
    Piece pieces_[static_cast<size_t>(Scratch::kCount)];
};

}  // namespace dllama::gpu
