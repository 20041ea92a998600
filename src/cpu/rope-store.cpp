#include "cpu/attention.hpp"
#include "cpu/norms.hpp"

namespace dllama {

void rotate(const StepInputs& step, const Rope& rope, int token, float* head) {
    const int half = rope.rotaryDim / 2;
    const bool interleaved = rope.style == Rope::Style::Interleaved;
    // Pair j is (j * stride, j * stride + apart).
    const int stride = interleaved ? 2 : 1;
    const int apart = interleaved ? 1 : half;
    for (int part = 0; part < rope.parts; part++, head += rope.rotaryDim) {
        const auto position = static_cast<size_t>(step.ropePositions[part * step.nTokens + token]);
        const float* cos = rope.cos.data + position * half;
        const float* sin = rope.sin.data + position * half;
        for (int j = 0; j < half; j++) {
            const float a = head[j * stride];
            const float b = head[j * stride + apart];
            head[j * stride] = a * cos[j] - b * sin[j];
            head[j * stride + apart] = b * cos[j] + a * sin[j];
        }
    }
}

void storeRow(const CpuWork& work, const KvLayer& kv, void* base, size_t at, const float* row) {
    if (kv.dtype == DType::F16)
        work.kernels.f32ToF16(row, static_cast<uint16_t*>(base) + at, kv.headDim);
    else
        std::copy_n(row, kv.headDim, static_cast<float*>(base) + at);
}

void ropeStoreCpu(const CpuWork& work, const StepInputs& step, Activations& qkv, const AttentionShape& shape,
                  const Rope& rope, const Norm* qNorm, const Norm* kNorm, KvLayer& kv) {
    const int d = shape.headDim;
    const int nTurned = shape.nHeads + shape.nKvHeads;
    const int nHeads = nTurned + shape.nKvHeads;
    constexpr int kHeadsPerItem = 16;
    const int itemsPerToken = (nHeads + kHeadsPerItem - 1) / kHeadsPerItem;
    work.forEach(static_cast<int64_t>(step.nTokens) * itemsPerToken, [&](int64_t item, int) {
        const auto token = static_cast<int>(item / itemsPerToken);
        const auto begin = static_cast<int>(item % itemsPerToken) * kHeadsPerItem;
        const int position = step.positions[token];
        const size_t block = step.blockTables[static_cast<size_t>(step.sequences[token]) * step.maxBlocks +
                                              position / kKvBlockPositions];
        for (int h = begin; h < std::min(begin + kHeadsPerItem, nHeads); h++) {
            float* head = qkv.f32 + static_cast<size_t>(token) * qkv.cols + static_cast<size_t>(h) * d;
            if (h < nTurned) {
                if (const Norm* norm = h < shape.nHeads ? qNorm : kNorm) normalize(*norm, head, head, d);
                rotate(step, rope, token, head);
            }
            if (h < shape.nHeads) continue;
            const int kvHead = (h - shape.nHeads) % shape.nKvHeads;
            const size_t row = (block * kv.nKvHeads + kvHead) * kKvBlockPositions + position % kKvBlockPositions;
            storeRow(work, kv, h < nTurned ? kv.k : kv.v, row * d, head);
        }
    });
}

}  // namespace dllama
