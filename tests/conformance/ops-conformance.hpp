#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "memory-source.hpp"

/// Every operation of a backend against the reference backend. A test program names its backends with
///     INSTANTIATE_TEST_SUITE_P(Cpu, Conformance, testing::ValuesIn(backends), backendLabel);
/// and is linked with the *-conformance.cpp files beside this header.
namespace dllama {

inline std::vector<DType> allTypes() {
    std::vector<DType> types;
    for (const DTypeInfo& info : kDTypes) types.push_back(info.type);
    return types;
}
inline std::vector<DType> quantizedTypes() {
    std::vector<DType> types;
    for (const DType type : allTypes())
        if (isQuantized(type)) types.push_back(type);
    return types;
}

struct BackendUnderTest {
    std::string label;  // letters, digits and _
    /// nThreads means something on a CPU only.
    std::function<std::shared_ptr<Backend>(int nThreads)> make;
    /// Results of all of these must have the same bits.
    std::vector<int> threadCounts = {1};
    /// A token's results have the same bits alone and in a batch.
    bool batchKeepsBits = true;
    /// addNorm computes exactly as normalizeInLanes() in the test does.
    bool exactNorms = true;
    /// experts() has the bits of ffnUp() and linear() expert by expert.
    bool exactExperts = true;
    /// Factor on every tolerance.
    double toleranceScale = 1.0;
};

inline std::string backendLabel(const testing::TestParamInfo<BackendUnderTest>& info) {
    return info.param.label;
}
inline void PrintTo(const BackendUnderTest& backend, std::ostream* out) {
    *out << backend.label;
}

/// The sums of a product of n terms run in f32 in another order than the reference's, which is in double: relative to
/// the root mean square of the results the error is a few times 2^-24 times the square root of the terms per lane.
constexpr double kFloatTolerance = 2e-5;

class Conformance : public testing::TestWithParam<BackendUnderTest> {
  protected:
    void SetUp() override;

    std::vector<float> randoms(size_t n, float scale = 1.0f);
    int randomInt(int begin, int end) { return std::uniform_int_distribution<int>(begin, end - 1)(random_); }
    /// A tensor of normally distributed values.
    TensorSlice addTensor(const std::string& name, DType dtype, int64_t rows, int64_t cols, float scale = 1.0f);
    /// Experts of dim columns and ffDim hidden values, gate and up scaled. The sixth is another rank's.
    std::vector<ExpertSpec> addExperts(DType dtype, int nExperts, int dim, int ffDim, float scale);

    /// What an operation makes of the tokens [first, first + count): (count, width) values.
    using Run = std::function<std::vector<float>(Backend&, int first, int count)>;
    /// Compares run(0, nTokens) of the backend under test with the reference, with itself for all numbers of threads,
    /// and with itself token by token.
    void check(const Run& run, int nTokens, double tolerance = kFloatTolerance);

    /// Differences <= tolerance times the root mean square of `expected`, or times the value where that is larger: a
    /// product of two sums (gate and up) errs by a part of itself. No NaN.
    void expectClose(const std::vector<float>& expected, const std::vector<float>& got, double tolerance);
    static void expectSameBits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what);

    MemorySource source_;
    std::mt19937 random_;
    unsigned seed_ = 0;
};

/// A batch of nTokens tokens of one sequence, for operations that look only at the number of tokens.
Batch plainBatch(int nTokens);

/// A buffer with the given values, or with NaN in every place.
Activations upload(Backend& backend, int rows, int cols, const float* values, bool quantized);
Activations poisoned(Backend& backend, int rows, int cols, bool quantized);
std::vector<float> download(Backend& backend, const Activations& from, int rows);

/// The matrix of one or more slices, with a bias or none.
std::unique_ptr<Matrix> loadMatrix(Backend& backend, const TensorSource& source, const std::vector<TensorSlice>& slices,
                                   const std::vector<TensorSlice>& biases = {});

}  // namespace dllama
