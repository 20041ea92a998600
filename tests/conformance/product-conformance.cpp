// linear, ffnUp, experts, route, head.

#include <algorithm>
#include <limits>

#include "backend/reference-backend.hpp"
#include "ops-conformance.hpp"

namespace dllama {

namespace {

struct Size {
    int rows, cols, nTokens;
};

/// Quantised rows are whole blocks; other rows may have any length.
std::vector<Size> sizesOf(DType type) {
    if (isQuantized(type)) return {{1, 32, 1}, {7, 96, 3}, {33, 352, 9}, {200, 64, 70}, {16, 4096, 2}, {100, 160, 16}};
    return {{1, 1, 1}, {7, 35, 3}, {33, 350, 9}, {200, 64, 70}, {5, 4099, 2}, {100, 17, 16}};
}

std::string label(DType type, const Size& size) {
    return std::string(dtypeName(type)) + " " + std::to_string(size.rows) + " x " + std::to_string(size.cols) + ", " +
           std::to_string(size.nTokens) + " tokens";
}

}  // namespace

TEST_P(Conformance, Linear) {
    for (const DType type : allTypes()) {
        for (const Size& size : sizesOf(type)) {
            SCOPED_TRACE(label(type, size));
            const TensorSlice weight = addTensor("w", type, size.rows, size.cols);
            const TensorSlice bias = addTensor("b", DType::F32, 1, size.rows);
            const std::vector<float> in = randoms(static_cast<size_t>(size.nTokens) * size.cols);
            const std::vector<float> before = randoms(static_cast<size_t>(size.nTokens) * size.rows);
            for (const bool accumulate : {false, true}) {
                check(
                    [&](Backend& backend, int first, int count) {
                        const Batch batch = plainBatch(count);
                        const StepInputs& step = backend.upload(batch);
                        const auto matrix = accumulate ? loadMatrix(backend, source_, {weight})
                                                       : loadMatrix(backend, source_, {weight}, {bias});
                        const Activations x =
                            upload(backend, count, size.cols, in.data() + first * size.cols, isQuantized(type));
                        Activations out =
                            accumulate ? upload(backend, count, size.rows, before.data() + first * size.rows, false)
                                       : poisoned(backend, count, size.rows, false);
                        backend.linear(step, x, *matrix, out, accumulate);
                        return download(backend, out, count);
                    },
                    size.nTokens);
            }
        }
    }
}

TEST_P(Conformance, PrefetchChangesNothing) {
    for (const DType type : {DType::Q40, DType::Q80, DType::F32}) {
        const TensorSlice gate = addTensor("gate", type, 1000, 512), up = addTensor("up", type, 1000, 512);
        const int nTokens = 70;
        const std::vector<float> in = randoms(nTokens * 512);
        for (const bool complete : {false, true}) {
            check(
                [&](Backend& backend, int first, int count) {
                    const Batch batch = plainBatch(count);
                    const StepInputs& step = backend.upload(batch);
                    const auto g = loadMatrix(backend, source_, {gate}), u = loadMatrix(backend, source_, {up});
                    const Activations x = upload(backend, count, 512, in.data() + first * 512, isQuantized(type));
                    Activations hidden = poisoned(backend, count, 1000, false);
                    Activations out = poisoned(backend, count, 1000, false);
                    const auto wait = [&] {
                        while (backend.prefetchPiece() && complete) continue;
                        backend.endPrefetch();
                    };
                    backend.prefetch(*u, g.get());
                    wait();
                    backend.ffnUp(step, x, g.get(), *u, Activation::Silu, hidden);
                    backend.prefetch(*u);
                    wait();
                    backend.linear(step, x, *g, out);  // another one than was named
                    backend.prefetch(*u);
                    wait();
                    backend.linear(step, x, *u, out, true);
                    std::vector<float> sums = download(backend, out, count);
                    const std::vector<float> products = download(backend, hidden, count);
                    for (size_t i = 0; i < sums.size(); i++) sums[i] += products[i];
                    return sums;
                },
                nTokens);
        }
    }
}

TEST_P(Conformance, LinearOfStackedAndCutTensors) {
    for (const DType type : allTypes()) {
        SCOPED_TRACE(dtypeName(type));
        const int cols = 192, nTokens = 5;
        TensorSlice q = addTensor("q", type, 50, cols), k = addTensor("k", type, 11, cols);
        q.rowBegin = 3;
        const TensorSlice bias = addTensor("b", DType::F16, 1, q.rows() + k.rows());
        const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * cols);
        for (const int colBegin : {0, 64}) {
            q.colBegin = k.colBegin = colBegin;
            const auto width = static_cast<int>(q.cols());
            const auto rows = static_cast<int>(q.rows() + k.rows());
            check(
                [&](Backend& backend, int first, int count) {
                    const Batch batch = plainBatch(count);
                    const StepInputs& step = backend.upload(batch);
                    const auto matrix = loadMatrix(backend, source_, {q, k}, {bias});
                    const Activations x = upload(backend, count, width, in.data() + first * width, isQuantized(type));
                    Activations out = poisoned(backend, count, rows, false);
                    backend.linear(step, x, *matrix, out);
                    return download(backend, out, count);
                },
                nTokens);
        }
    }
}

TEST_P(Conformance, LinearOfLargestInt8Values) {
    // The extremes of both formats, where 16-bit sums would overflow first.
    const int rows = 20, cols = 256;
    std::vector<float> values(rows * cols);
    for (int i = 0; i < rows * cols; i++) values[i] = (i / cols) % 2 ? -8.0f : (i % 32 == 0 ? -8.0f : 7.0f);
    for (const DType type : quantizedTypes()) {
        source_.add("w", type, rows, cols, values);
        for (const float sign : {1.0f, -1.0f}) {
            const std::vector<float> in(cols, sign);
            check(
                [&](Backend& backend, int, int) {
                    const Batch batch = plainBatch(1);
                    const StepInputs& step = backend.upload(batch);
                    const auto matrix = loadMatrix(backend, source_, {source_.whole("w")});
                    const Activations x = upload(backend, 1, cols, in.data(), true);
                    Activations out = poisoned(backend, 1, rows, false);
                    backend.linear(step, x, *matrix, out);
                    return download(backend, out, 1);
                },
                1);
        }
    }
}

TEST_P(Conformance, HeadOfGatheredRows) {
    for (const DType type : allTypes()) {
        SCOPED_TRACE(dtypeName(type));
        const int rows = 77, cols = 96, nTokens = 6;
        const std::vector<int32_t> wanted = {1, 4, 5};
        const TensorSlice weight = addTensor("w", type, rows, cols);
        const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * cols);
        check(
            [&](Backend& backend, int, int) {
                Batch batch = plainBatch(nTokens);
                batch.outputRows = wanted;
                const StepInputs& step = backend.upload(batch);
                const auto matrix = loadMatrix(backend, source_, {weight});
                const Activations x = upload(backend, nTokens, cols, in.data(), false);
                Activations last = poisoned(backend, 3, cols, true);
                Activations logits = poisoned(backend, 3, rows, false);
                backend.gatherOutputs(step, x, last);
                backend.head(step, last, *matrix, logits);
                return download(backend, logits, 3);
            },
            1);
    }
}

TEST_P(Conformance, FfnUp) {
    for (const DType type : allTypes()) {
        for (const int nTokens : {1, 3, 70}) {
            for (const Activation act : {Activation::Silu, Activation::GeluTanh}) {
                for (const bool gated : {true, false}) {
                    const int rows = 160, cols = 64;
                    SCOPED_TRACE(label(type, {rows, cols, nTokens}) + (gated ? ", gated" : ""));
                    const TensorSlice gate = addTensor("gate", type, rows, cols, 0.5f);
                    const TensorSlice up = addTensor("up", type, rows, cols, 0.5f);
                    const TensorSlice bias = addTensor("bias", DType::F32, 1, rows);
                    const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * cols);
                    check(
                        [&](Backend& backend, int first, int count) {
                            const Batch batch = plainBatch(count);
                            const StepInputs& step = backend.upload(batch);
                            const auto gateMatrix = loadMatrix(backend, source_, {gate});
                            const auto upMatrix = loadMatrix(backend, source_, {up}, {bias});
                            const Activations x =
                                upload(backend, count, cols, in.data() + first * cols, isQuantized(type));
                            Activations out = poisoned(backend, count, rows, true);
                            backend.ffnUp(step, x, gated ? gateMatrix.get() : nullptr, *upMatrix, act, out);
                            return download(backend, out, count);
                        },
                        nTokens);
                }
            }
        }
    }
}

TEST_P(Conformance, OperationsWriteTheQuantisedForm) {
    // What an operation leaves in a quantised buffer is what its f32 values give when they are uploaded.
    const int dim = 128, rows = 40, nTokens = 3;
    const TensorSlice weight = addTensor("w", DType::Q40, rows, dim), square = addTensor("s", DType::Q80, dim, dim);
    const std::vector<float> values = randoms(static_cast<size_t>(nTokens) * dim), ones(dim, 1.0f);
    const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
    const Batch batch = plainBatch(nTokens);
    const StepInputs& step = backend->upload(batch);
    const auto matrix = loadMatrix(*backend, source_, {weight}), dimMatrix = loadMatrix(*backend, source_, {square});
    Activations in = upload(*backend, nTokens, dim, values.data(), true);
    Norm norm;
    norm.weight = backend->uploadVector(ones.data(), dim);

    const auto product = [&](const Activations& x) {
        Activations out = poisoned(*backend, nTokens, rows, false);
        backend->linear(step, x, *matrix, out);
        return download(*backend, out, nTokens);
    };
    const std::pair<const char*, std::function<void(Activations&)>> operations[] = {
        {"addNorm", [&](Activations& out) { backend->addNorm(step, {.x = &in, .next = &norm, .out = &out}); }},
        {"linear", [&](Activations& out) { backend->linear(step, in, *dimMatrix, out); }},
        {"ffnUp", [&](Activations& out) { backend->ffnUp(step, in, nullptr, *dimMatrix, Activation::Silu, out); }},
        {"gatherOutputs", [&](Activations& out) { backend->gatherOutputs(step, in, out); }},
        {"clear", [&](Activations& out) { backend->clear(step, out); }},
    };
    for (const auto& [name, operation] : operations) {
        SCOPED_TRACE(name);
        Activations out = poisoned(*backend, nTokens, dim, true);
        operation(out);
        const Activations again = upload(*backend, nTokens, dim, download(*backend, out, nTokens).data(), true);
        expectSameBits(product(again), product(out), "quantised form");
    }
}

TEST_P(Conformance, Experts) {
    for (const DType type : allTypes()) {
        const int nExperts = 8, topK = 3, dim = 64, ffDim = 96, nTokens = 150;
        SCOPED_TRACE(dtypeName(type));
        const std::vector<ExpertSpec> specs = addExperts(type, nExperts, dim, ffDim, 0.3f);
        const std::vector<float> routerWeight = randoms(static_cast<size_t>(nExperts) * dim, 0.3f);
        const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * dim);
        const std::vector<float> before = randoms(static_cast<size_t>(nTokens) * dim);
        // The hidden values are rounded to Q80 after they were computed with another order of sums: a value at the edge
        // between two steps may fall to the other side, which is 1/127 of its block's largest value.
        const double tolerance = isQuantized(type) ? 2e-2 : kFloatTolerance;
        check(
            [&](Backend& backend, int first, int count) {
                const Batch batch = plainBatch(count);
                const StepInputs& step = backend.upload(batch);
                Router router;
                router.nExperts = nExperts;
                router.topK = topK;
                router.weight = backend.uploadVector(routerWeight.data(), nExperts * dim);
                Routing routing = backend.allocateRouting(count, topK);
                const auto set = backend.loadExperts(source_, specs);
                const Activations x = upload(backend, count, dim, in.data() + first * dim, isQuantized(type));
                Activations out = upload(backend, count, dim, before.data() + first * dim, false);
                backend.route(step, x, router, routing);
                backend.experts(step, x, routing, *set, out);
                return download(backend, out, count);
            },
            nTokens, tolerance);
    }
}

TEST_P(Conformance, MoeOp) {
    // A shared FFN of the experts' type, or of another one, and of another width.
    for (const DType type : allTypes()) {
        for (const DType sharedType : {type, DType::Q80}) {
            for (const int nTokens : {1, 5, 40}) {
                const int nExperts = 8, topK = 3, dim = 160, ffDim = 96, sharedDim = 224;
                SCOPED_TRACE(std::string(dtypeName(type)) + " beside " + dtypeName(sharedType) + ", " +
                             std::to_string(nTokens) + " tokens");
                const std::vector<ExpertSpec> specs = addExperts(type, nExperts, dim, ffDim, 0.3f);
                const TensorSlice gate = addTensor("gate", sharedType, sharedDim, dim, 0.3f),
                                  up = addTensor("up", sharedType, sharedDim, dim, 0.3f),
                                  down = addTensor("down", sharedType, dim, sharedDim);
                const std::vector<float> routerWeight = randoms(static_cast<size_t>(nExperts) * dim, 0.3f);
                const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * dim);
                for (const bool hasShared : {true, false}) {
                    for (const bool hasExperts : {true, false}) {
                        check(
                            [&](Backend& backend, int first, int count) {
                                const Batch batch = plainBatch(count);
                                const StepInputs& step = backend.upload(batch);
                                Router router;
                                router.nExperts = nExperts;
                                router.topK = topK;
                                router.weight = backend.uploadVector(routerWeight.data(), nExperts * dim);
                                Routing routing = backend.allocateRouting(count, topK);
                                const auto set = backend.loadExperts(source_, specs);
                                const auto gateMatrix = loadMatrix(backend, source_, {gate}),
                                           upMatrix = loadMatrix(backend, source_, {up}),
                                           downMatrix = loadMatrix(backend, source_, {down});
                                MoeOp m{&router, hasExperts ? set.get() : nullptr};
                                if (hasShared)
                                    m.gate = gateMatrix.get(), m.up = upMatrix.get(), m.down = downMatrix.get();
                                const Activations x = upload(backend, count, dim, in.data() + first * dim, true);
                                Activations hidden = poisoned(backend, count, sharedDim, true);
                                Activations out = poisoned(backend, count, dim, false);
                                backend.moe(step, x, m, hidden, routing, out);
                                return download(backend, out, count);
                            },
                            nTokens, isQuantized(type) || isQuantized(sharedType) ? 2e-2 : kFloatTolerance);
                    }
                }
            }
        }
    }
}

TEST_P(Conformance, OneExpertIsFfnUpAndLinear) {
    for (const DType type : allTypes()) {
        SCOPED_TRACE(dtypeName(type));
        const int dim = 96, ffDim = 160, nTokens = 7;
        const TensorSlice gate = addTensor("gate", type, ffDim, dim, 0.3f),
                          up = addTensor("up", type, ffDim, dim, 0.3f);
        const TensorSlice down = addTensor("down", type, dim, ffDim);
        const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * dim), weight(dim);
        const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
        const Batch batch = plainBatch(nTokens);
        const StepInputs& step = backend->upload(batch);
        const Activations x = upload(*backend, nTokens, dim, in.data(), isQuantized(type));

        Activations hidden = poisoned(*backend, nTokens, ffDim, isQuantized(type));
        Activations expected = poisoned(*backend, nTokens, dim, false);
        const auto gateMatrix = loadMatrix(*backend, source_, {gate}), upMatrix = loadMatrix(*backend, source_, {up});
        backend->ffnUp(step, x, gateMatrix.get(), *upMatrix, Activation::Silu, hidden);
        backend->linear(step, hidden, *loadMatrix(*backend, source_, {down}), expected);

        // The only expert has score 1/2, and weight 1 after normalisation.
        Router router;
        router.nExperts = router.topK = 1;
        router.weight = backend->uploadVector(weight.data(), dim);
        Routing routing = backend->allocateRouting(nTokens, 1);
        const auto set = backend->loadExperts(source_, {{{{gate}, {}}, {{up}, {}}, {{down}, {}}}});
        Activations got = poisoned(*backend, nTokens, dim, false);
        backend->clear(step, got);
        backend->route(step, x, router, routing);
        backend->experts(step, x, routing, *set, got);
        if (GetParam().exactExperts)
            expectSameBits(download(*backend, expected, nTokens), download(*backend, got, nTokens), "experts");
        else
            expectClose(download(*backend, expected, nTokens), download(*backend, got, nTokens),
                        isQuantized(type) ? 2e-2 : kFloatTolerance);
    }
}

// Routing is seen through experts: expert e adds only to output e, by a number that is the same for all experts, so
// that the outputs are the experts' weights.
TEST_P(Conformance, Route) {
    struct Case {
        Router::Score score;
        int nExperts, topK, nGroups, topGroups;
        bool normalize, biased, tied;
    };
    using Score = Router::Score;
    for (const Case& c :
         {Case{Score::Sigmoid, 16, 2, 1, 1, true, true, false}, Case{Score::Sigmoid, 128, 8, 1, 1, true, true, false},
          Case{Score::Sigmoid, 160, 8, 1, 1, true, true, true}, Case{Score::Sigmoid, 32, 4, 8, 3, true, true, false},
          Case{Score::Softmax, 64, 6, 1, 1, false, false, false}, Case{Score::Softmax, 12, 3, 4, 2, true, false, true},
          Case{Score::Sigmoid, 1, 1, 1, 1, true, false, false}}) {
        const int dim = 160, nTokens = 9;
        SCOPED_TRACE(std::to_string(c.nExperts) + " experts, " + std::to_string(c.nGroups) + " groups" +
                     (c.tied ? ", tied" : ""));
        std::vector<float> weight = randoms(static_cast<size_t>(c.nExperts) * dim, 0.1f);
        std::vector<float> bias = randoms(c.nExperts, 0.1f);
        if (c.tied) {
            // Every second expert equals the one before it.
            for (int e = 1; e < c.nExperts; e += 2) {
                std::copy_n(weight.begin() + (e - 1) * dim, dim, weight.begin() + e * dim);
                bias[e] = bias[e - 1];
            }
        }
        const std::vector<float> in = randoms(static_cast<size_t>(nTokens) * dim);
        // The hidden value is silu(g) * u with g = u = 1, from a column of ones that in has been given below.
        std::vector<float> picksLast(dim);
        picksLast[dim - 1] = 1.0f;
        source_.add("pick", DType::F32, 1, dim, picksLast);
        std::vector<ExpertSpec> specs(c.nExperts);
        for (int e = 0; e < c.nExperts; e++) {
            std::vector<float> down(c.nExperts);
            down[e] = 1.0f;
            const std::string name = "down" + std::to_string(e);
            source_.add(name, DType::F32, c.nExperts, 1, down);
            specs[e] = {{{source_.whole("pick")}, {}}, {{source_.whole("pick")}, {}}, {{source_.whole(name)}, {}}};
        }
        // Scores and weights are computed in f32: a few 2^-24, relative to weights that are at most `scale`.
        check(
            [&](Backend& backend, int first, int count) {
                const Batch batch = plainBatch(count);
                const StepInputs& step = backend.upload(batch);
                Router router{c.score, c.nExperts, c.topK, c.nGroups, c.topGroups, c.normalize, 2.5f, {}, {}};
                router.weight = backend.uploadVector(weight.data(), static_cast<int64_t>(weight.size()));
                if (c.biased) router.bias = backend.uploadVector(bias.data(), c.nExperts);
                std::vector<float> rows(in.begin() + first * dim, in.begin() + (first + count) * dim);
                for (int t = 0; t < count; t++) rows[t * dim + dim - 1] = 1.0f;
                const Activations x = upload(backend, count, dim, rows.data(), false);
                Routing routing = backend.allocateRouting(count, c.topK);
                const auto set = backend.loadExperts(source_, specs);
                Activations out = poisoned(backend, count, c.nExperts, false);
                backend.clear(step, out);
                backend.route(step, x, router, routing);
                backend.experts(step, x, routing, *set, out);
                return download(backend, out, count);
            },
            nTokens);
    }
}

}  // namespace dllama
