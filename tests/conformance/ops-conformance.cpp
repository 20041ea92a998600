#include "ops-conformance.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iostream>
#include <limits>

#include "backend/reference-backend.hpp"

namespace dllama {

void Conformance::SetUp() {
    // A failure is repeated with DLLAMA_TEST_SEED.
    const char* wanted = std::getenv("DLLAMA_TEST_SEED");
    seed_ = wanted ? static_cast<unsigned>(std::strtoul(wanted, nullptr, 10)) : std::random_device()();
    RecordProperty("seed", std::to_string(seed_));
    std::cout << "seed " << seed_ << "\n";
    random_.seed(seed_);
}

std::vector<float> Conformance::randoms(size_t n, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
}

TensorSlice Conformance::addTensor(const std::string& name, DType dtype, int64_t rows, int64_t cols, float scale) {
    source_.add(name, dtype, rows, cols, randoms(static_cast<size_t>(rows * cols), scale));
    return source_.whole(name);
}

std::vector<ExpertSpec> Conformance::addExperts(DType dtype, int nExperts, int dim, int ffDim, float scale) {
    std::vector<ExpertSpec> specs(nExperts);
    for (int e = 0; e < nExperts; e++) {
        if (e == 5) continue;
        const std::string name = std::to_string(e);
        specs[e] = {{{addTensor("gate" + name, dtype, ffDim, dim, scale)}, {}},
                    {{addTensor("up" + name, dtype, ffDim, dim, scale)}, {}},
                    {{addTensor("down" + name, dtype, dim, ffDim)}, {}}};
    }
    return specs;
}

void Conformance::check(const Run& run, int nTokens, double tolerance) {
    const std::unique_ptr<Backend> reference = makeReferenceBackend();
    const std::vector<float> expected = run(*reference, 0, nTokens);
    std::vector<float> first;
    for (const int nThreads : GetParam().threadCounts) {
        const std::shared_ptr<Backend> backend = GetParam().make(nThreads);
        const std::vector<float> got = run(*backend, 0, nTokens);
        if (first.empty()) {
            first = got;
            expectClose(expected, got, tolerance);
        }
        expectSameBits(first, got, "with " + std::to_string(nThreads) + " threads");
    }
    if (!GetParam().batchKeepsBits || nTokens == 1) return;
    const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
    std::vector<float> single;
    for (int token = 0; token < nTokens; token++) {
        const std::vector<float> row = run(*backend, token, 1);
        single.insert(single.end(), row.begin(), row.end());
    }
    expectSameBits(first, single, "token by token");
}

void Conformance::expectClose(const std::vector<float>& expected, const std::vector<float>& got, double tolerance) {
    ASSERT_EQ(expected.size(), got.size());
    double squares = 0.0;
    for (const float value : expected) squares += static_cast<double>(value) * value;
    const double rootMeanSquare = std::sqrt(squares / static_cast<double>(expected.size()));
    for (size_t i = 0; i < got.size(); i++) {
        const double size = std::max(rootMeanSquare, std::abs(static_cast<double>(expected[i])));
        ASSERT_LE(std::abs(static_cast<double>(got[i]) - expected[i]), tolerance * GetParam().toleranceScale * size)
            << "value " << i << " of " << got.size() << ": " << got[i] << ", expected " << expected[i] << ", seed "
            << seed_;
    }
}

void Conformance::expectSameBits(const std::vector<float>& a, const std::vector<float>& b, const std::string& what) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); i++)
        ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i]))
            << what << ": value " << i << " is " << b[i] << " instead of " << a[i];
}

Batch plainBatch(int nTokens) {
    Batch batch;
    batch.nTokens = nTokens;
    batch.nSequences = 1;
    batch.maxBlocks = (nTokens + kKvBlockPositions - 1) / kKvBlockPositions;
    for (int t = 0; t < nTokens; t++) {
        batch.positions.push_back(t);
        batch.contextLengths.push_back(t + 1);
        batch.ropePositions.push_back(t);
        batch.outputRows.push_back(t);
    }
    batch.sequences.assign(nTokens, 0);
    for (int b = 0; b < batch.maxBlocks; b++) batch.blockTables.push_back(b);
    return batch;
}

Activations upload(Backend& backend, int rows, int cols, const float* values, bool quantized) {
    Activations a = backend.allocateActivations(rows, cols, quantized);
    backend.uploadActivations(values, rows, a);
    return a;
}

Activations poisoned(Backend& backend, int rows, int cols, bool quantized) {
    const std::vector<float> nans(static_cast<size_t>(rows) * cols, std::numeric_limits<float>::quiet_NaN());
    return upload(backend, rows, cols, nans.data(), quantized);
}

std::vector<float> download(Backend& backend, const Activations& from, int rows) {
    std::vector<float> values(static_cast<size_t>(rows) * from.cols);
    backend.download(from, rows, values.data());
    return values;
}

std::unique_ptr<Matrix> loadMatrix(Backend& backend, const TensorSource& source, const std::vector<TensorSlice>& slices,
                                   const std::vector<TensorSlice>& biases) {
    return backend.loadMatrix(source, {slices, biases});
}

}  // namespace dllama
