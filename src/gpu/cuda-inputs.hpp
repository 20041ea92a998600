#pragma once

#include "gpu/cuda-check.hpp"

namespace dllama::gpu {

/// Brings batches to the device: one page-locked buffer, one copy, device addresses that stay the same from step to
/// step (recorded graphs read from them) until a batch needs more room.
class CudaInputs {
  public:
    /// Copies the batch in stream order. Returns true if the addresses changed.
    bool upload(const Batch& batch, const Stream& stream);
    const StepInputs& step() const { return step_; }

  private:
    static constexpr int kSlots = 2;  // staging of the step before may still be read
    StepInputs step_;
    size_t capacity_ = 0;
    int rowCapacity_ = 0, sequenceCapacity_ = 0, tableWidth_ = 0, ropeParts_ = 0;
    size_t embeddingCapacity_ = 0;
    DeviceMemory device_;
    DeviceMemory staging_[kSlots];
    EventHandle copied_[kSlots] = {makeEvent(), makeEvent()};
    int slot_ = 0;
};

}  // namespace dllama::gpu
