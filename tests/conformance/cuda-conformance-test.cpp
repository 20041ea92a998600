#include <algorithm>
#include <cstring>

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
    if (cudaDevices().empty()) return {};
    // Exact: f32 sums in other orders. Half: factors are rounded to f16, 2^-12 of them each, where the tolerances allow
    // for 2^-24: the largest of some thousand errors is several times their mean.
    // Library: the same by cuBLAS.
    return {cudaBackend("Exact", {.halfProducts = false}, 4.0), cudaBackend("Half", {}, 300.0),
            cudaBackend("Library", {.libraryRows = 2}, 300.0)};
}

// Without a GPU there is nothing to instantiate: the program then says so by this test, and CTest reports it as
// skipped.
TEST(CudaConformance, HasAGpu) {
    if (cudaDevices().empty()) GTEST_SKIP() << "no GPU: the CUDA backend is not tested";
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
            batch.contextLengths = {position + 1};
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

// Matrices of models' sizes: rows that fill the kernels' blocks, long ones, and more blocks than run at once.
class CudaLarge : public Conformance {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaLarge);
INSTANTIATE_TEST_SUITE_P(Cuda, CudaLarge, testing::ValuesIn(cudaBackends()), backendLabel);

TEST_P(CudaLarge, Linear) {
    struct Case {
        DType type;
        int rows, cols, nTokens;
    };
    for (const Case& c : {Case{DType::Q40, 24008, 320, 1},
                          {DType::Q40, 9000, 4096, 1},
                          {DType::Q40, 600, 13696, 1},
                          {DType::Q40, 77, 1024, 1},
                          {DType::Q80, 9000, 2048, 1},
                          {DType::Q40, 1040, 4096, 4},
                          {DType::Q40, 264, 13696, 3},
                          {DType::Q40, 136, 4096, 13},
                          {DType::Q80, 512, 2048, 16},
                          {DType::Q80, 120, 2048, 8},
                          {DType::Q40, 4616, 1120, 2},
                          {DType::Q40, 200, 4096, 24},
                          {DType::Q40, 520, 352, 64},
                          {DType::Q80, 72, 4096, 33}}) {
        SCOPED_TRACE(std::string(dtypeName(c.type)) + " " + std::to_string(c.rows) + " x " + std::to_string(c.cols) +
                     ", " + std::to_string(c.nTokens) + " tokens");
        const TensorSlice weight = addTensor("w", c.type, c.rows, c.cols);
        const TensorSlice bias = addTensor("b", DType::F32, 1, c.rows);
        const std::vector<float> in = randoms(static_cast<size_t>(c.nTokens) * c.cols);
        const std::vector<float> before = randoms(static_cast<size_t>(c.nTokens) * c.rows);
        for (const bool accumulate : {false, true}) {
            check(
                [&](Backend& backend, int, int) {
                    const Batch batch = plainBatch(c.nTokens);
                    const StepInputs& step = backend.upload(batch);
                    const auto matrix = loadMatrix(backend, source_, {weight}, {bias});
                    const Activations x = upload(backend, c.nTokens, c.cols, in.data(), true);
                    Activations out = accumulate ? upload(backend, c.nTokens, c.rows, before.data(), false)
                                                 : poisoned(backend, c.nTokens, c.rows, false);
                    backend.linear(step, x, *matrix, out, accumulate);
                    return download(backend, out, c.nTokens);
                },
                c.nTokens);
        }
    }
}

TEST_P(CudaLarge, FfnUp) {
    struct Case {
        DType type;
        int rows, cols, nTokens;
    };
    // As many blocks as two GPUs' shares have, and more than run at once; rows that end within a Q80 block.
    for (const Case& c : {Case{DType::Q40, 32 * 700, 320, 1},
                          {DType::Q40, 32 * 214, 4096, 1},
                          {DType::Q80, 32 * 700, 320, 1},
                          {DType::Q80, 32 * 214, 4096, 1},
                          {DType::Q40, 13696, 256, 3},
                          {DType::Q40, 352, 4096, 8},
                          {DType::Q40, 1384, 1024, 16},
                          {DType::Q40, 480, 640, 40},
                          {DType::Q80, 344, 2048, 13}}) {
        SCOPED_TRACE(std::string(dtypeName(c.type)) + ", " + std::to_string(c.rows) + " x " + std::to_string(c.cols) +
                     ", " + std::to_string(c.nTokens) + " tokens");
        const TensorSlice gate = addTensor("gate", c.type, c.rows, c.cols, 0.1f),
                          up = addTensor("up", c.type, c.rows, c.cols, 0.1f);
        const TensorSlice down = addTensor("down", c.type, 32, c.rows, 0.1f);
        const TensorSlice bias = addTensor("bias", DType::F32, 1, c.rows);
        const std::vector<float> in = randoms(static_cast<size_t>(c.nTokens) * c.cols, 0.3f);
        // The f32 form, and by a product the quantised one.
        for (const bool quantized : {false, true}) {
            if (quantized && c.rows % 32 != 0) continue;  // a matrix has whole blocks of columns
            check(
                [&](Backend& backend, int, int) {
                    const Batch batch = plainBatch(c.nTokens);
                    const StepInputs& step = backend.upload(batch);
                    const auto gateMatrix = loadMatrix(backend, source_, {gate}, {bias});
                    const auto upMatrix = loadMatrix(backend, source_, {up}, {bias});
                    const Activations x = upload(backend, c.nTokens, c.cols, in.data(), true);
                    Activations out = poisoned(backend, c.nTokens, c.rows, true);
                    backend.ffnUp(step, x, gateMatrix.get(), *upMatrix, Activation::Silu, out);
                    if (!quantized) return download(backend, out, c.nTokens);
                    const auto downMatrix = loadMatrix(backend, source_, {down});
                    Activations y = poisoned(backend, c.nTokens, 32, false);
                    backend.linear(step, out, *downMatrix, y, false);
                    return download(backend, y, c.nTokens);
                },
                c.nTokens, quantized ? 2e-2 : kFloatTolerance);
        }
    }
}

TEST_P(CudaLarge, MoeOp) {
    struct Case {
        DType type;
        int dim, ffDim, sharedDim, topK, nTokens;
    };
    for (const Case& c : {Case{DType::Q40, 4096, 704, 704, 8, 1},
                          {DType::Q40, 1024, 1408, 1408, 8, 2},
                          {DType::Q40, 1024, 2048, 0, 12, 1},
                          {DType::Q80, 512, 768, 1536, 4, 3},
                          {DType::Q80, 256, 352, 0, 8, 16},
                          {DType::Q40, 512, 352, 352, 4, 5},
                          {DType::Q40, 384, 256, 0, 8, 40},
                          {DType::Q80, 256, 160, 96, 2, 64}}) {
        const int nExperts = c.topK + 3;
        SCOPED_TRACE(std::string(dtypeName(c.type)) + ", " + std::to_string(c.dim) + " to " + std::to_string(c.ffDim) +
                     ", " + std::to_string(c.nTokens) + " tokens");
        const std::vector<ExpertSpec> specs = addExperts(c.type, nExperts, c.dim, c.ffDim, 0.05f);
        const int sharedDim = std::max(32, c.sharedDim);
        const TensorSlice gate = addTensor("gate", c.type, sharedDim, c.dim, 0.05f),
                          up = addTensor("up", c.type, sharedDim, c.dim, 0.05f),
                          down = addTensor("down", c.type, c.dim, sharedDim);
        const std::vector<float> routerWeight = randoms(static_cast<size_t>(nExperts) * c.dim, 0.1f);
        const std::vector<float> in = randoms(static_cast<size_t>(c.nTokens) * c.dim);
        check(
            [&](Backend& backend, int first, int count) {
                const Batch batch = plainBatch(count);
                const StepInputs& step = backend.upload(batch);
                Router router;
                router.nExperts = nExperts;
                router.topK = c.topK;
                router.weight = backend.uploadVector(routerWeight.data(), static_cast<int64_t>(nExperts) * c.dim);
                Routing routing = backend.allocateRouting(count, c.topK);
                const auto set = backend.loadExperts(source_, specs);
                const auto gateMatrix = loadMatrix(backend, source_, {gate}),
                           upMatrix = loadMatrix(backend, source_, {up}),
                           downMatrix = loadMatrix(backend, source_, {down});
                MoeOp m{&router, set.get()};
                if (c.sharedDim > 0) m.gate = gateMatrix.get(), m.up = upMatrix.get(), m.down = downMatrix.get();
                const Activations x = upload(backend, count, c.dim, in.data() + first * c.dim, true);
                Activations hidden = poisoned(backend, count, sharedDim, true);
                Activations out = poisoned(backend, count, c.dim, false);
                backend.moe(step, x, m, hidden, routing, out);
                return download(backend, out, count);
            },
            c.nTokens, 2e-2);
    }
}

}  // namespace
}  // namespace dllama
