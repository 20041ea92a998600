// embed, clear, addNorm.

#include <algorithm>

#include "ops-conformance.hpp"
#include "tensor/blocks.hpp"

namespace dllama {

namespace {

/// The sum as the contract of addNorm orders it.
float sumInLanes(const std::vector<float>& terms) {
    float lanes[32] = {};
    for (size_t begin = 0; begin < terms.size(); begin += 256) {
        float piece[32] = {};
        for (size_t i = begin; i < std::min(begin + 256, terms.size()); i++) piece[i % 32] += terms[i];
        for (int lane = 0; lane < 32; lane++) lanes[lane] += piece[lane];
    }
    for (int width = 16; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

std::vector<float> normalizeInLanes(Norm::Kind kind, float eps, const std::vector<float>& weight,
                                    const std::vector<float>& bias, std::vector<float> x) {
    const auto n = static_cast<float>(x.size());
    if (kind == Norm::Kind::Layer) {
        const float mean = sumInLanes(x) / n;
        for (float& value : x) value -= mean;
    }
    std::vector<float> squares = x;
    for (float& value : squares) value *= value;
    const float scale = 1.0f / std::sqrt(sumInLanes(squares) / n + eps);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = x[i] * scale * weight[i];
        if (kind == Norm::Kind::Layer) x[i] += bias[i];
    }
    return x;
}

}  // namespace

TEST_P(Conformance, Embed) {
    for (const DType type : allTypes()) {
        const int cols = 96, nTokens = 5;
        const std::vector<float> values = randoms(static_cast<size_t>(nTokens) * cols);
        const size_t rowBytes = storedBytes(type, cols);
        std::vector<std::byte> rows(nTokens * rowBytes);
        quantize(type, values.data(), rows.data(), nTokens * cols);
        check(
            [&](Backend& backend, int first, int count) {
                Batch batch = plainBatch(count);
                batch.embeddingType = type;
                batch.embeddings.assign(rows.begin() + first * rowBytes, rows.begin() + (first + count) * rowBytes);
                const StepInputs& step = backend.upload(batch);
                Activations x = poisoned(backend, count, cols, false);
                backend.embed(step, x);
                return download(backend, x, count);
            },
            nTokens, 0.0);
    }
}

TEST_P(Conformance, ClearTouchesOnlyTheBatch) {
    const std::vector<float> values = randoms(3 * 40);
    const std::shared_ptr<Backend> backend = GetParam().make(1);
    const Batch batch = plainBatch(2);
    const StepInputs& step = backend->upload(batch);
    Activations x = upload(*backend, 3, 40, values.data(), false);
    backend->clear(step, x);
    std::vector<float> expected = values;
    std::fill_n(expected.begin(), 2 * 40, 0.0f);
    expectSameBits(expected, download(*backend, x, 3), "clear");
}

TEST_P(Conformance, AddNorm) {
    for (const Norm::Kind kind : {Norm::Kind::Rms, Norm::Kind::Layer}) {
        for (const int cols : {1, 8, 37, 64, 1000, 4096}) {
            for (int options = 0; options < 16; options++) {
                const bool hasY = options & 1, hasPost = options & 2, hasBase = options & 4, hasNext = options & 8;
                if (hasPost && !hasY) continue;
                SCOPED_TRACE(std::to_string(cols) + " values, options " + std::to_string(options));
                const int nTokens = 3;
                const float eps = 1e-5f, alpha = 7.5f;
                const size_t n = static_cast<size_t>(nTokens) * cols;
                const std::vector<float> x0 = randoms(n), y0 = randoms(n), base0 = randoms(n);
                const std::vector<float> weights[2] = {randoms(cols), randoms(cols)};
                const std::vector<float> biases[2] = {randoms(cols), randoms(cols)};
                const auto run = [&](Backend& backend, int first, int count) {
                    const Batch batch = plainBatch(count);
                    const StepInputs& step = backend.upload(batch);
                    Norm norms[2];
                    for (int i = 0; i < 2; i++) {
                        norms[i].kind = kind;
                        norms[i].eps = eps;
                        norms[i].weight = backend.uploadVector(weights[i].data(), cols);
                        norms[i].bias = backend.uploadVector(biases[i].data(), cols);
                    }
                    Activations x = upload(backend, count, cols, x0.data() + first * cols, false);
                    const Activations y = upload(backend, count, cols, y0.data() + first * cols, false);
                    // The base and the result may be one buffer.
                    Activations base = upload(backend, count, cols, base0.data() + first * cols, cols % 32 == 0);
                    Activations fresh = poisoned(backend, count, cols, cols % 32 == 0);
                    Activations& out = hasBase ? base : fresh;
                    AddNorm op;
                    op.x = &x;
                    if (hasY) op.y = &y;
                    if (hasPost) op.post = &norms[0];
                    if (hasBase) op.scaledBase = &base;
                    op.alpha = alpha;
                    if (hasNext) op.next = &norms[1], op.out = &out;
                    backend.addNorm(step, op);
                    std::vector<float> result = download(backend, x, count);
                    if (!hasNext) return result;
                    // Token by token: x, then out.
                    const std::vector<float> normed = download(backend, out, count);
                    std::vector<float> both;
                    for (int t = 0; t < count; t++) {
                        both.insert(both.end(), result.begin() + t * cols, result.begin() + (t + 1) * cols);
                        both.insert(both.end(), normed.begin() + t * cols, normed.begin() + (t + 1) * cols);
                    }
                    return both;
                };
                // One value under LayerNorm is 0 / sqrt(eps): nothing to round.
                check(run, nTokens);
                if (!GetParam().exactNorms) continue;

                std::vector<float> expected;
                for (int t = 0; t < nTokens; t++) {
                    const auto row = [&](const std::vector<float>& v) {
                        return std::vector<float>(v.begin() + t * cols, v.begin() + (t + 1) * cols);
                    };
                    std::vector<float> x = row(x0), y = row(y0);
                    const std::vector<float> base = row(base0);
                    if (hasPost) y = normalizeInLanes(kind, eps, weights[0], biases[0], y);
                    for (int i = 0; i < cols; i++) {
                        if (hasBase) x[i] = alpha * base[i];
                        if (hasY) x[i] += y[i];
                    }
                    expected.insert(expected.end(), x.begin(), x.end());
                    if (!hasNext) continue;
                    const std::vector<float> out = normalizeInLanes(kind, eps, weights[1], biases[1], x);
                    expected.insert(expected.end(), out.begin(), out.end());
                }
                const std::shared_ptr<Backend> backend = GetParam().make(GetParam().threadCounts.back());
                expectSameBits(expected, run(*backend, 0, nTokens), "the order of the contract");
            }
        }
    }
}

}  // namespace dllama
