#include <algorithm>
#include <cstring>
#include <iostream>

#include "backend/reference-backend.hpp"
#include "gpu/cuda-backend.hpp"
#include "ops-conformance.hpp"

namespace dllama {
namespace {

BackendUnderTest cudaBackend(const char* label, const CudaOptions& options, double toleranceScale) {
    const auto make = [options](int) { return std::shared_ptr<Backend>(makeCudaBackend(options)); };
    // Kernels of one token, of few and of many add in different orders.
    return {.label = label,
            .make = make,
            .batchKeepsBits = false,
            .exactNorms = true,
            .exactExperts = false,
            .toleranceScale = toleranceScale};
}

std::vector<BackendUnderTest> cudaBackends() {
    if (cudaDevices().empty()) {
        std::cout << "no GPU: the CUDA backend is not tested\n";
        return {};
    }
    // Exact: f32 sums in other orders. Half: factors are rounded to f16, 2^-12 of them each, where the tolerances allow
    // for 2^-24: the largest of some thousand errors is several times their mean.
    // Library: the same by cuBLAS.
    return {cudaBackend("Exact", {.halfProducts = false}, 4.0), cudaBackend("Half", {}, 300.0),
            cudaBackend("Library", {.libraryRows = 2}, 300.0)};
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Conformance);
INSTANTIATE_TEST_SUITE_P(Cuda, Conformance, testing::ValuesIn(cudaBackends()), backendLabel);

// A decode step in small: what is recorded must serve other inputs, longer contexts and other block tables.
class CudaStep : public Conformance {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaStep);
INSTANTIATE_TEST_SUITE_P(Cuda, CudaStep, testing::ValuesIn(cudaBackends()), backendLabel);

TEST_P(CudaStep, RecordedStepsFollowTheirInputs) {
    const int dim = 256, headDim = 64, nBlocks = 40;
    const AttentionShape shape{4, 2, headDim, 2, 0};
    const TensorSlice qkvSlice = addTensor("qkv", DType::Q40, shape.qkvCols(), dim, 0.1f);
    const TensorSlice headSlice = addTensor("head", DType::Q40, 80, shape.nHeads * headDim, 0.1f);
    const std::vector<float> ones(dim, 1.0f);
    const int half = headDim / 4;
    std::vector<float> cosines(2048 * half), sines(cosines.size());
    for (size_t i = 0; i < cosines.size(); i++) {
        cosines[i] = std::cos(static_cast<float>(i / half) / static_cast<float>(1 + i % half));
        sines[i] = std::sin(static_cast<float>(i / half) / static_cast<float>(1 + i % half));
    }
    const int nSteps = 90;
    const std::vector<float> embeddings = randoms(static_cast<size_t>(nSteps) * dim);

    const auto run = [&](Backend& backend) {
        Norm norm;
        norm.weight = backend.uploadVector(ones.data(), dim);
        Rope rope{Rope::Style::Interleaved, 1, headDim / 2, {}, {}};
        rope.cos = backend.uploadVector(cosines.data(), static_cast<int64_t>(cosines.size()));
        rope.sin = backend.uploadVector(sines.data(), static_cast<int64_t>(sines.size()));
        const auto qkvMatrix = loadMatrix(backend, source_, {qkvSlice}),
                   head = loadMatrix(backend, source_, {headSlice});
        KvLayer kv = backend.allocateKvLayer(DType::F16, nBlocks, shape.nKvHeads, headDim);
        Activations x = backend.allocateActivations(1, dim, false), normed = backend.allocateActivations(1, dim, true);
        Activations qkv = backend.allocateActivations(1, shape.qkvCols(), false);
        Activations context = backend.allocateActivations(1, shape.nHeads * headDim, true);
        Activations last = backend.allocateActivations(1, shape.nHeads * headDim, true);
        Activations logits = backend.allocateActivations(1, 80, false);
        std::vector<float> all;
        for (int position = 0; position < nSteps; position++) {
            Batch batch;
            batch.nTokens = batch.nSequences = 1;
            batch.maxBlocks = 1 + position / kKvBlockPositions;
            for (int b = 0; b < batch.maxBlocks; b++) batch.blockTables.push_back((7 * b + 3) % nBlocks);
            batch.embeddings.resize(dim * sizeof(float));
            std::memcpy(batch.embeddings.data(), embeddings.data() + position * dim, dim * sizeof(float));
            batch.positions = batch.ropePositions = {position};
            batch.visible = {position + 1};
            batch.sequences = batch.outputRows = {0};
            const StepInputs& step = backend.upload(batch);
            backend.run("decode", [&] {
                backend.embed(step, x);
                backend.addNorm(step, {.x = &x, .next = &norm, .out = &normed});
                backend.linear(step, normed, *qkvMatrix, qkv);
                backend.ropeStore(step, qkv, shape, rope, nullptr, nullptr, kv);
                backend.attention(step, qkv, shape, kv, context);
                backend.gatherOutputs(step, context, last);
                backend.head(step, last, *head, logits);
            });
            const std::vector<float> row = download(backend, logits, 1);
            all.insert(all.end(), row.begin(), row.end());
        }
        return all;
    };
    const std::vector<float> expected = run(*makeReferenceBackend());
    const std::vector<float> got = run(*GetParam().make(1));
    // An activation near the middle of two Q80 steps may be rounded the other way.
    ASSERT_EQ(expected.size(), got.size());
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < got.size(); i++) {
        error += std::pow(static_cast<double>(got[i]) - expected[i], 2);
        size += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_LE(std::sqrt(error / size), 5e-3) << "seed " << seed_;
}

}  // namespace
}  // namespace dllama
