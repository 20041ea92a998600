#include "engine/scheduler.hpp"

#include <algorithm>

#include "backend/batch.hpp"

namespace dllama {

namespace {

/// Places sequences into a step, one after the other.
class StepPlanner {
  public:
    StepPlanner(std::span<const Pending> pending, const Budget& budget)
        : pending_(pending), maxTokens_(budget.maxTokens), left_(budget), isPreempted_(pending.size(), false) {
        schedule_.counts.assign(pending.size(), 0);
    }

    Schedule plan() {
        for (size_t i = 0; i < pending_.size(); i++)
            if (pending_[i].decoding) place(i, true);
        const bool decodes = left_.maxTokens < maxTokens_;
        left_.maxPrefillBesideDecode = decodes ? left_.maxPrefillBesideDecode : left_.maxTokens;
        for (size_t i = 0; i < pending_.size(); i++) {
            if (pending_[i].decoding) continue;
            // Who came later does not begin before this one.
            if (pending_[i].started || !promptWaits_) place(i, false);
        }
        // Prompts that block each other: the oldest goes on at the cost of the others.
        const auto isWorking = [](int count) { return count > 0; };
        for (size_t i = 0; i < pending_.size(); i++) {
            if (std::any_of(schedule_.counts.begin(), schedule_.counts.end(), isWorking)) break;
            place(i, true);
        }
        return std::move(schedule_);
    }

  private:
    void place(size_t i, bool mayPreempt) {
        const Pending& p = pending_[i];
        if (isPreempted_[i]) return;
        int count = std::min(p.nUncached, left_.maxTokens);
        if (!p.decoding)
            count = std::max(std::min(count, left_.maxPrefillBesideDecode), std::min(count, p.indivisible));
        // Without a row for its logits a sequence stops one short of its end.
        if (count == p.nUncached && left_.maxOutputs == 0) count--;
        if (count <= 0 || count < p.indivisible) return;
        // Blocks of the whole prompt: one that began without them would only hold others up.
        if (!p.decoding && !p.started && !mayPreempt && blocksFor(p, p.nUncached) > left_.nFreeBlocks) {
            promptWaits_ = true;
            return;
        }
        while (mayPreempt && blocksFor(p, count) > left_.nFreeBlocks && preemptLatest(i)) {
        }
        while (count > 0 && blocksFor(p, count) > left_.nFreeBlocks) count--;
        if (count <= 0 || count < p.indivisible) return;
        schedule_.counts[i] = count;
        left_.nFreeBlocks -= blocksFor(p, count);
        left_.maxTokens -= count;
        if (!p.decoding) left_.maxPrefillBesideDecode = std::max(0, left_.maxPrefillBesideDecode - count);
        if (count == p.nUncached) left_.maxOutputs--;
    }

    /// Blocks that the sequence lacks for `count` more tokens.
    static int blocksFor(const Pending& p, int count) {
        return std::max(0, (p.nCached + count + kKvBlockPositions - 1) / kKvBlockPositions - p.nBlocks);
    }

    /// Of the sequences that hold blocks and have no place in this step yet, the latest one behind `i`.
    bool preemptLatest(size_t i) {
        for (size_t j = pending_.size(); j-- > i + 1;) {
            if (isPreempted_[j] || schedule_.counts[j] > 0 || pending_[j].nBlocks == 0) continue;
            isPreempted_[j] = true;
            schedule_.preempted.push_back(static_cast<int>(j));
            left_.nFreeBlocks += pending_[j].nOwnBlocks;
            return true;
        }
        return false;
    }

    std::span<const Pending> pending_;
    const int maxTokens_;
    Budget left_;
    std::vector<bool> isPreempted_;
    bool promptWaits_ = false;  // for blocks
    Schedule schedule_;
};

}  // namespace

Schedule schedule(std::span<const Pending> pending, const Budget& budget) {
    return StepPlanner(pending, budget).plan();
}

}  // namespace dllama
