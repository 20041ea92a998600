#include "cpu/experts.hpp"

#include <numeric>

namespace dllama {

namespace {

/// Rows of the hidden layer in a work item: its outputs are one Q80 block of each entry.
constexpr int kHiddenRows = 32;

void sortByExpert(const StepInputs& step, const Routing& routing, const CpuExpertSet& set, ExpertScratch& scratch) {
    const int n = step.nTokens * routing.topK;
    const auto owned = [&](int i) { return set.experts[routing.experts[i]].up != nullptr; };
    scratch.begins.assign(set.experts.size() + 1, 0);
    for (int i = 0; i < n; i++)
        if (owned(i)) scratch.begins[routing.experts[i] + 1]++;
    scratch.active.clear();
    for (int e = 0; e < set.nExperts; e++) {
        if (scratch.begins[e + 1] > 0) scratch.active.push_back(e);
        scratch.begins[e + 1] += scratch.begins[e];
    }
    const int nEntries = scratch.begins.back();
    scratch.tokens.resize(nEntries);
    scratch.rows.resize(nEntries);
    std::iota(scratch.rows.begin(), scratch.rows.end(), 0);
    scratch.positions.resize(n);
    // begins[e] serves as the next free entry of e, which leaves it at the begin of e + 1: shift back afterwards.
    for (int i = 0; i < n; i++) {
        scratch.positions[i] = owned(i) ? scratch.begins[routing.experts[i]]++ : -1;
        if (owned(i)) scratch.tokens[scratch.positions[i]] = i / routing.topK;
    }
    for (int e = set.nExperts; e > 0; e--) scratch.begins[e] = scratch.begins[e - 1];
    scratch.begins[0] = 0;
}

}  // namespace

void runExperts(const CpuWork& work, ExpertScratch& scratch, const StepInputs& step, const Activations& in,
                const Routing& routing, const CpuExpertSet& set, Activations& out) {
    sortByExpert(step, routing, set, scratch);
    const int nEntries = scratch.begins.back();
    if (nEntries > 0) {
        const CpuKernels& kernels = work.kernels;
        const InputView input = inputView(in);
        InputView hidden;
        hidden.cols = set.ffDim;
        auto* blocks = set.quantizedDown ? scratch.hidden.get<InputBlock>(nEntries * set.ffDim / 32) : nullptr;
        auto* floats = set.quantizedDown ? nullptr : scratch.hidden.get<float>(nEntries * set.ffDim);
        hidden.blocks = blocks;
        hidden.f32 = floats;

        // hidden = silu(gate in) * (up in), for all entries of an expert at once.
        const int64_t hiddenItems = (set.ffDim + kHiddenRows - 1) / kHiddenRows;
        work.forEach(hiddenItems * static_cast<int64_t>(scratch.active.size()), [&](int64_t item, int) {
            const int e = scratch.active[item / hiddenItems];
            const CpuExpert& expert = set.experts[e];
            const int64_t row = item % hiddenItems * kHiddenRows;
            const auto nRows = static_cast<int>(std::min<int64_t>(kHiddenRows, set.ffDim - row));
            for (int begin = scratch.begins[e]; begin < scratch.begins[e + 1]; begin += kMaxItemInputs) {
                const int n = std::min(kMaxItemInputs, scratch.begins[e + 1] - begin);
                alignas(64) float gate[kMaxItemInputs * kHiddenRows], up[kMaxItemInputs * kHiddenRows];
                const int32_t* tokens = scratch.tokens.data() + begin;
                multiply(kernels, *expert.gate, row, nRows, input, tokens, n, gate, kHiddenRows);
                multiply(kernels, *expert.up, row, nRows, input, tokens, n, up, kHiddenRows);
                for (int i = 0; i < n; i++) {
                    float* value = up + i * kHiddenRows;
                    kernels.silu(gate + i * kHiddenRows, value, value, nRows);
                    const int64_t at = (begin + i) * set.ffDim + row;
                    if (blocks)
                        kernels.quantize(value, kHiddenRows, blocks + at / 32);
                    else
                        std::copy_n(value, nRows, floats + at);
                }
            }
        });

        // An item computes some output values for all entries, then adds them up by token, in the order of its slots.
        const int size = itemRows(out.cols, 16, work.pool.nThreads());
        float* products = scratch.products.get<float>(static_cast<size_t>(work.pool.nThreads()) * nEntries * size);
        work.forEach((out.cols + size - 1) / size, [&](int64_t item, int thread) {
            const int64_t row = item * size;
            const auto nRows = static_cast<int>(std::min<int64_t>(size, out.cols - row));
            float* y = products + static_cast<size_t>(thread) * nEntries * size;
            for (int e : scratch.active) {
                const int begin = scratch.begins[e];
                multiply(kernels, *set.experts[e].down, row, nRows, hidden, scratch.rows.data() + begin,
                         scratch.begins[e + 1] - begin, y + static_cast<size_t>(begin) * size, size);
            }
            for (int i = 0; i < step.nTokens * routing.topK; i++) {
                if (scratch.positions[i] < 0) continue;
                const float* from = y + static_cast<size_t>(scratch.positions[i]) * size;
                float* to = out.f32 + static_cast<size_t>(i / routing.topK) * out.cols + row;
                for (int r = 0; r < nRows; r++) to[r] += routing.weights[i] * from[r];
            }
        });
    }
    quantizeRows(work, step.nTokens, out);
}

}  // namespace dllama
