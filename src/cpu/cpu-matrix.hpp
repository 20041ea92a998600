#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "backend/backend.hpp"
#include "cpu/kernels.hpp"

namespace dllama {

/// A matrix in the layout of WeightView: quantised ones repacked, float ones read in place if their source is mapped.
struct CpuMatrix final : Matrix {
    WeightView view;
    std::vector<float> bias;  // (rows), or empty
    std::vector<const std::byte*> rowPointers;
    DeviceMemory memory;  // null if it is part of an expert set's memory, or in place
};

struct CpuExpert {
    std::unique_ptr<CpuMatrix> gate, up, down;  // all null if another rank owns the expert
};

struct CpuExpertSet final : ExpertSet {
    std::vector<CpuExpert> experts;
    int64_t ffDim = 0;
    bool quantizedDown = false;
    DeviceMemory memory;
};

inline const CpuMatrix& cpuMatrix(const Matrix& matrix) {
    return static_cast<const CpuMatrix&>(matrix);
}

std::unique_ptr<CpuMatrix> loadCpuMatrix(const TensorSource& source, const MatrixSpec& spec, int groupRows);
/// All experts of a layer in one piece of memory.
std::unique_ptr<CpuExpertSet> loadCpuExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs,
                                             int groupRows);

/// The slice's values as floats.
std::vector<float> readFloats(const TensorSource& source, const TensorSlice& slice);

}  // namespace dllama
