#include "gpu/cuda-inputs.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace dllama::gpu {

namespace {

/// The smallest power of two that holds both.
template <typename T>
T grow(T have, size_t wanted) {
    return static_cast<T>(std::max<size_t>(have, std::bit_ceil(std::max<size_t>(wanted, 16))));
}

}  // namespace

bool CudaInputs::upload(const Batch& batch, const Stream& stream) {
    const size_t rows = static_cast<size_t>(batch.nTokens);
    const int parts = std::max(1, batch.nTokens ? static_cast<int>(batch.ropePositions.size() / rows) : 1);
    const bool fits = batch.nTokens <= rowCapacity_ && batch.nSequences <= sequenceCapacity_ &&
                      batch.maxBlocks <= tableWidth_ && parts <= ropeParts_ &&
                      batch.embeddings.size() <= embeddingCapacity_ && batch.nOutputs() <= rowCapacity_;
    if (!fits) {
        rowCapacity_ = grow(rowCapacity_, std::max(batch.nTokens, batch.nOutputs()));
        sequenceCapacity_ = grow(sequenceCapacity_, batch.nSequences);
        tableWidth_ = grow(tableWidth_, batch.maxBlocks);
        ropeParts_ = std::max(ropeParts_, parts);
        embeddingCapacity_ = grow(embeddingCapacity_, batch.embeddings.size());
        capacity_ = embeddingCapacity_ + sizeof(int32_t) * (static_cast<size_t>(rowCapacity_) * (5 + ropeParts_) +
                                                            static_cast<size_t>(sequenceCapacity_) * tableWidth_);
        check(cudaStreamSynchronize(stream.handle), "batch");
        device_ = allocateDevice(capacity_);
        for (DeviceMemory& staging : staging_) staging = allocatePinned(capacity_);
    }
    slot_ = (slot_ + 1) % kSlots;
    check(cudaEventSynchronize(copied_[slot_].get()), "batch");

    // Small arrays first, so that the copy ends with the last byte in use of the embeddings.
    std::byte* host = staging_[slot_].get();
    size_t at = 0;
    const auto place = [&]<typename T>(const std::vector<T>& values, size_t room) {
        if (!values.empty()) std::memcpy(host + at, values.data(), values.size() * sizeof(T));
        const auto* address = reinterpret_cast<const T*>(device_.get() + at);
        at += room * sizeof(T);
        return address;
    };
    step_.positions = place(batch.positions, rowCapacity_);
    step_.contextLengths = place(batch.contextLengths, rowCapacity_);
    step_.sequences = place(batch.sequences, rowCapacity_);
    step_.outputRows = place(batch.outputRows, rowCapacity_);
    step_.outputTemperatures = place(batch.outputTemperatures, rowCapacity_);
    step_.ropePositions = place(batch.ropePositions, static_cast<size_t>(rowCapacity_) * ropeParts_);
    step_.blockTables = reinterpret_cast<const int32_t*>(device_.get() + at);
    for (int s = 0; s < batch.nSequences; s++)
        std::memcpy(host + at + sizeof(int32_t) * s * tableWidth_,
                    batch.blockTables.data() + static_cast<size_t>(s) * batch.maxBlocks,
                    sizeof(int32_t) * batch.maxBlocks);
    at += sizeof(int32_t) * sequenceCapacity_ * tableWidth_;
    step_.embeddings = device_.get() + at;
    if (!batch.embeddings.empty()) std::memcpy(host + at, batch.embeddings.data(), batch.embeddings.size());
    at += batch.embeddings.size();
    check(cudaMemcpyAsync(device_.get(), host, at, cudaMemcpyHostToDevice, stream.handle), "batch");
    check(cudaEventRecord(copied_[slot_].get(), stream.handle), "batch");

    step_.nTokens = batch.nTokens;
    step_.nSequences = batch.nSequences;
    step_.maxBlocks = tableWidth_;
    step_.nOutputs = batch.nOutputs();
    step_.maxContextLength = 0;
    for (const int32_t contextLength : batch.contextLengths)
        step_.maxContextLength = std::max(step_.maxContextLength, static_cast<int>(contextLength));
    step_.embeddingType = batch.embeddingType;
    step_.host = &batch;
    return !fits;
}

}  // namespace dllama::gpu
