#include "engine/scheduler.hpp"

#include <algorithm>

namespace dllama {

std::vector<int> schedule(std::span<const Pending> pending, int maxTokens, int maxSequences) {
    std::vector<int> counts(pending.size(), 0);
    int tokensLeft = maxTokens, rowsLeft = maxSequences;
    const auto place = [&](size_t i) {
        int count = std::min(pending[i].nUncached, tokensLeft);
        // Without a row for its logits a prompt stops one short of its end.
        if (count == pending[i].nUncached && rowsLeft == 0) count--;
        if (count <= 0 || count < pending[i].indivisible) return;
        counts[i] = count;
        tokensLeft -= count;
        if (count == pending[i].nUncached) rowsLeft--;
    };
    for (size_t i = 0; i < pending.size(); i++)
        if (pending[i].nUncached == 1) place(i);
    for (size_t i = 0; i < pending.size(); i++)
        if (pending[i].nUncached > 1) place(i);
    return counts;
}

}  // namespace dllama
