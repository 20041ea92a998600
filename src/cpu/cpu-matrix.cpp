#include "cpu/cpu-matrix.hpp"

#include <algorithm>
#include <cstring>

#include "base/errors.hpp"
#include "cpu/cpu-memory.hpp"
#include "tensor/blocks.hpp"

namespace dllama {

namespace {

constexpr size_t kAlignment = 64;

size_t alignUp(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

struct Shape {
    DType dtype = DType::F32;
    int64_t rows = 0;
    int64_t cols = 0;
    bool inPlace = false;
};

Shape shapeOf(const TensorSource& source, const MatrixSpec& spec) {
    DLLAMA_CHECK(!spec.weights.empty());
    Shape shape{source.info(spec.weights[0].name).dtype, 0, spec.weights[0].cols(), true};
    for (const TensorSlice& slice : spec.weights) {
        DLLAMA_CHECK(source.info(slice.name).dtype == shape.dtype && slice.cols() == shape.cols);
        shape.rows += slice.rows();
        if (isQuantized(shape.dtype) || !source.isMapped(slice)) shape.inPlace = false;
    }
    return shape;
}

/// Bytes of memory the matrix needs.
size_t bytesFor(const Shape& shape, int groupRows) {
    if (shape.inPlace) return 0;
    const int64_t rows = isQuantized(shape.dtype) ? (shape.rows + groupRows - 1) / groupRows * groupRows : shape.rows;
    return alignUp(static_cast<size_t>(rows) * storedBytes(shape.dtype, shape.cols));
}

/// Writes one row of stored blocks to its place in the packed groups (see WeightView).
template <DType kType>
void packRow(const std::byte* stored, int64_t nBlocks, int64_t row, int groupRows, std::byte* packed) {
    constexpr size_t kHead = dtypeInfo(kType).headBytes, kStored = blockBytes(kType);
    const auto rows = static_cast<size_t>(groupRows), lane = static_cast<size_t>(row % groupRows);
    std::byte* to = packed + static_cast<size_t>(row / groupRows * nBlocks) * kStored * rows;
    for (int64_t b = 0; b < nBlocks; b++, stored += kStored, to += kStored * rows) {
        std::memcpy(to + kHead * lane, stored, kHead);
        std::byte* words = to + kHead * rows;
        for (size_t word = 0; word < (kStored - kHead) / 4; word++)
            std::memcpy(words + (word * rows + lane) * 4, stored + kHead + 4 * word, 4);
    }
}

/// `memory` has bytesFor() zeroed bytes.
std::unique_ptr<CpuMatrix> fillMatrix(const TensorSource& source, const MatrixSpec& spec, const Shape& shape,
                                      int groupRows, std::byte* memory) {
    auto matrix = std::make_unique<CpuMatrix>();
    matrix->dtype = shape.dtype;
    matrix->rows = shape.rows;
    matrix->cols = shape.cols;
    matrix->deviceBytes = bytesFor(shape, groupRows);

    const size_t rowBytes = storedBytes(shape.dtype, shape.cols);
    std::vector<std::byte> scratch;
    int64_t row = 0;
    for (const TensorSlice& slice : spec.weights) {
        const std::span<const std::byte> bytes = source.read(slice, scratch);
        DLLAMA_CHECK(bytes.size() == static_cast<size_t>(slice.rows()) * rowBytes);
        const std::byte* from = bytes.data();
        if (!shape.inPlace && !isQuantized(shape.dtype)) {
            std::byte* copy = memory + static_cast<size_t>(row) * rowBytes;
            std::memcpy(copy, from, bytes.size());
            from = copy;
        }
        for (int64_t i = 0; i < slice.rows(); i++, row++, from += rowBytes) {
            const bool packed = withQuantized(shape.dtype, [&](auto type) {
                packRow<type>(from, shape.cols / blockValues(type), row, groupRows, memory);
            });
            if (!packed) matrix->rowPointers.push_back(from);
        }
        if (!shape.inPlace) source.release(slice);
    }
    for (const TensorSlice& slice : spec.biases) {
        const std::vector<float> values = readFloats(source, slice);
        matrix->bias.insert(matrix->bias.end(), values.begin(), values.end());
    }
    DLLAMA_CHECK(matrix->bias.empty() || static_cast<int64_t>(matrix->bias.size()) == shape.rows);
    matrix->view = {memory, matrix->rowPointers.data(), shape.rows, shape.cols};
    return matrix;
}

}  // namespace

std::vector<float> readFloats(const TensorSource& source, const TensorSlice& slice) {
    std::vector<std::byte> scratch;
    const std::span<const std::byte> bytes = source.read(slice, scratch);
    std::vector<float> values(static_cast<size_t>(slice.rows() * slice.cols()));
    dequantize(source.info(slice.name).dtype, bytes.data(), values.data(), static_cast<int64_t>(values.size()));
    return values;
}

std::unique_ptr<CpuMatrix> loadCpuMatrix(const TensorSource& source, const MatrixSpec& spec, int groupRows) {
    const Shape shape = shapeOf(source, spec);
    DeviceMemory memory = shape.inPlace ? nullptr : allocateCpuMemory(bytesFor(shape, groupRows));
    auto matrix = fillMatrix(source, spec, shape, groupRows, memory.get());
    matrix->memory = std::move(memory);
    return matrix;
}

std::unique_ptr<CpuExpertSet> loadCpuExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs,
                                             int groupRows) {
    auto set = std::make_unique<CpuExpertSet>();
    set->nExperts = static_cast<int>(specs.size());
    for (const ExpertSpec& spec : specs) {
        if (spec.gate.weights.empty()) continue;
        for (const MatrixSpec* matrix : {&spec.gate, &spec.up, &spec.down})
            set->deviceBytes += bytesFor(shapeOf(source, *matrix), groupRows);
    }
    set->memory = allocateCpuMemory(set->deviceBytes);

    std::byte* next = set->memory.get();
    const auto load = [&](const MatrixSpec& spec) {
        auto matrix = fillMatrix(source, spec, shapeOf(source, spec), groupRows, next);
        next += matrix->deviceBytes;
        return matrix;
    };
    for (const ExpertSpec& spec : specs) {
        CpuExpert& expert = set->experts.emplace_back();
        if (spec.gate.weights.empty()) continue;
        expert.gate = load(spec.gate);
        expert.up = load(spec.up);
        expert.down = load(spec.down);
        set->ffDim = expert.up->rows;
        set->quantizedDown = isQuantized(expert.down->dtype);
    }
    return set;
}

}  // namespace dllama
