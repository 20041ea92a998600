#include "cpu/top-logits.hpp"

#include <algorithm>
#include <limits>

namespace dllama {

namespace {

constexpr int kPieceCols = 4096;
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr float kBroken = std::numeric_limits<float>::quiet_NaN();

struct Candidate {
    float value;
    int column;
    bool operator<(const Candidate& other) const {
        return value != other.value ? value > other.value : column < other.column;
    }
};

/// What was found in one piece of a row.
struct Piece {
    float largest = kNone;  // NaN if one of the values is
    float sum = 0.0f;
    int n = 0;  // candidates, the best first
    Candidate candidates[kMaxTopLogits];
};

void findBest(const float* row, int begin, int end, int k, Piece& piece) {
    piece.n = 0;
    bool broken = false;
    for (int i = begin; i < end; i++) {
        broken |= row[i] != row[i];
        if (piece.n == k && !(row[i] > piece.candidates[k - 1].value)) continue;
        // Columns ascend, so that an equal one stands behind those that are there.
        int at = piece.n < k ? piece.n++ : k - 1;
        for (; at > 0 && row[i] > piece.candidates[at - 1].value; at--) piece.candidates[at] = piece.candidates[at - 1];
        piece.candidates[at] = {row[i], i};
    }
    piece.largest = broken ? kBroken : piece.n > 0 ? piece.candidates[0].value : kNone;
}

}  // namespace

void findTopLogits(const CpuWork& work, Scratch& scratch, const StepInputs& step, const Activations& logits,
                   int firstToken, int k, Activations& out) {
    const int n = logits.cols;
    const int nPieces = std::max(1, (n + kPieceCols - 1) / kPieceCols);
    auto* pieces = scratch.get<Piece>(static_cast<size_t>(step.nOutputs) * nPieces);
    const auto rowOf = [&](int64_t item) { return logits.f32 + item / nPieces * n; };
    const auto beginOf = [&](int64_t item) { return static_cast<int>(item % nPieces) * kPieceCols; };
    const auto endOf = [&](int64_t item) { return std::min(n, beginOf(item) + kPieceCols); };

    work.forEach(int64_t{step.nOutputs} * nPieces,
                 [&](int64_t item, int) { findBest(rowOf(item), beginOf(item), endOf(item), k, pieces[item]); });
    for (int64_t i = 0; i < step.nOutputs; i++) {
        Piece* row = pieces + i * nPieces;
        float largest = kNone;
        for (int p = 0; p < nPieces; p++)
            if (!(row[p].largest <= largest)) largest = row[p].largest;  // NaN wins, and stays
        out.f32[i * out.cols] = largest;
    }
    work.forEach(int64_t{step.nOutputs} * nPieces, [&](int64_t item, int) {
        const float temperature = step.outputTemperatures[item / nPieces];
        pieces[item].sum = temperature > 0.0f
                               ? work.kernels.sumExp(rowOf(item) + beginOf(item), endOf(item) - beginOf(item),
                                                     out.f32[item / nPieces * out.cols], 1.0f / temperature)
                               : 0.0f;
    });

    std::vector<Candidate> all;
    for (int64_t i = 0; i < step.nOutputs; i++) {
        float* to = out.f32 + i * out.cols;
        double sum = 0.0;
        all.clear();
        for (int p = 0; p < nPieces; p++) {
            const Piece& piece = pieces[i * nPieces + p];
            sum += piece.sum;
            all.insert(all.end(), piece.candidates, piece.candidates + piece.n);
        }
        const auto found = static_cast<int>(std::min<size_t>(k, all.size()));
        std::partial_sort(all.begin(), all.begin() + found, all.end());
        to[1] = static_cast<float>(sum);
        for (int j = 0; j < k; j++) {
            to[2 + j] = j < found ? all[j].value : kNone;
            to[2 + k + j] = j < found ? static_cast<float>(firstToken + all[j].column) : -1.0f;
        }
    }
}

}  // namespace dllama
