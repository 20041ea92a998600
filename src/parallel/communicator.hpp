#pragma once

#include <algorithm>
#include <span>

#include "backend/backend.hpp"

namespace dllama {

/// The collectives of a step. Every rank makes the same calls in the same order. Throws
/// PeerLost when another rank does not answer in time.
class Communicator {
  public:
    virtual ~Communicator() = default;
    virtual int rank() const = 0;
    virtual int nRanks() const = 0;

    /// x = the sum over all ranks of the first nTokens rows of x. All ranks hold the same bits.
    virtual void allReduce(const StepInputs& step, Activations& x) = 0;

    /// The same in two calls, so that a rank can compute while the sum is on its way. Between them x belongs to the
    /// sum, and no other call is made. Only worth it where overlaps() says so.
    virtual bool overlaps() const { return false; }
    virtual void startAllReduce(const StepInputs& step, Activations& x) { allReduce(step, x); }
    virtual void waitAllReduce(const StepInputs& /*step*/, Activations& /*x*/) {}

    /// Rank r contributes `mine`, nRows rows of colsOfRank[r] values; rank 0 receives them side by side in
    /// `all` (nRows, sum of colsOfRank). `all` is ignored on other ranks.
    virtual void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) = 0;
};

/// One rank alone.
class SingleRank final : public Communicator {
  public:
    int rank() const override { return 0; }
    int nRanks() const override { return 1; }
    void allReduce(const StepInputs&, Activations&) override {}
    void gatherRows(std::span<const float> mine, int, std::span<const int>, float* all) override {
        std::copy(mine.begin(), mine.end(), all);
    }
};

}  // namespace dllama
