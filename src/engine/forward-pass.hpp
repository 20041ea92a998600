#pragma once

#include <cstdint>
#include <vector>

#include "backend/batch.hpp"
#include "base/errors.hpp"
#include "model/decoder.hpp"

namespace dllama {

/// What a rank has exchanged with others so far.
struct Traffic {
    double syncSeconds = 0.0;  // waiting for them included
    uint64_t sentBytes = 0;
    uint64_t receivedBytes = 0;
};

/// What the engine drives: one rank alone, or a whole cluster seen from its root.
class ForwardPass {
  public:
    virtual ~ForwardPass() = default;
    /// Runs one step. If batch.nTop is not 0, `best` becomes (nOutputs, parts * topLogitsCols(nTop)): the best
    /// logits of each part of the vocabulary. Throws PeerLost when the cached positions of all sequences are lost and
    /// must be computed again.
    virtual void forward(const Batch& batch, std::vector<float>& best) = 0;
    /// All logits of the last step, (nOutputs, vocab size). Throws PeerLost like forward().
    virtual void gatherLogits(std::vector<float>& logits) = 0;
    /// True if gatherLogits() costs next to nothing, so that there is no point in asking for the best ones.
    virtual bool logitsAreNear() const = 0;
    /// Makes forward() possible again after PeerLost, with an empty cache: waits for the lost rank or goes on without
    /// it. Throws `lost` again if neither is possible.
    virtual void recover(const PeerLost& lost) { throw lost; }
    virtual const DecoderLimits& limits() const = 0;
    virtual Traffic traffic() const { return {}; }
};

/// A decoder on this machine.
class LocalForward final : public ForwardPass {
  public:
    explicit LocalForward(Decoder& decoder) : decoder_(decoder) {}
    void forward(const Batch& batch, std::vector<float>& best) override { decoder_.forward(batch, best); }
    void gatherLogits(std::vector<float>& logits) override { decoder_.gatherLogits(logits); }
    bool logitsAreNear() const override { return decoder_.logitsAreNear(); }
    const DecoderLimits& limits() const override { return decoder_.limits(); }

  private:
    Decoder& decoder_;
};

}  // namespace dllama
