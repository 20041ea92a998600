#include "backend/reference-backend.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "backend/host-step.hpp"
#include "backend/reference-latent.hpp"
#include "backend/reference-parts.hpp"
#include "base/errors.hpp"

namespace dllama {

DeviceMemory allocateHostMemory(size_t bytes) {
    constexpr std::align_val_t kAlignment{64};
    auto* data = static_cast<std::byte*>(::operator new(std::max<size_t>(bytes, 1), kAlignment));
    std::memset(data, 0, bytes);
    return {data, [](std::byte* p) { ::operator delete (p, std::align_val_t{64}); }};
}

using namespace reference;

namespace {

struct PlainExperts final : ExpertSet {
    struct Expert {
        std::unique_ptr<Matrix> gate, up, down;
    };
    std::vector<Expert> experts;
};

std::vector<float> readFloats(const TensorSource& source, const TensorSlice& slice) {
    std::vector<std::byte> scratch;
    const std::span<const std::byte> bytes = source.read(slice, scratch);
    std::vector<float> values(static_cast<size_t>(slice.rows() * slice.cols()));
    dequantize(source.info(slice.name).dtype, bytes.data(), values.data(), static_cast<int64_t>(values.size()));
    return values;
}

float activate(Activation act, float x) {
    const double v = x;
    if (act == Activation::Silu) return static_cast<float>(v / (1.0 + std::exp(-v)));
    return static_cast<float>(0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))));
}

std::vector<float> upGate(const Matrix* gate, const Matrix& up, Activation act, const float* x) {
    std::vector<float> h = multiply(plain(up), x);
    if (!gate) {
        for (float& value : h) value = activate(act, value);
        return h;
    }
    const std::vector<float> g = multiply(plain(*gate), x);
    for (size_t i = 0; i < h.size(); i++) h[i] *= activate(act, g[i]);
    return h;
}

class ReferenceBackend final : public Backend {
  public:
    std::string name() const override { return "reference"; }
    LatentOps* latentOps() override { return &latentOps_; }

    Activations allocateActivations(int maxRows, int cols, bool) override {
        Activations a{maxRows, cols, nullptr, nullptr, allocateHostMemory(sizeof(float) * maxRows * cols)};
        a.f32 = reinterpret_cast<float*>(a.memory.get());
        return a;
    }

    DeviceMemory allocate(size_t bytes) override { return allocateHostMemory(bytes); }

    Vector uploadVector(const float* values, int64_t n) override {
        Vector vector{n, nullptr, allocateHostMemory(sizeof(float) * n)};
        vector.data = reinterpret_cast<float*>(vector.memory.get());
        std::copy_n(values, n, vector.data);
        return vector;
    }

    Vector loadVector(const TensorSource& source, const TensorSlice& slice) override {
        const std::vector<float> values = readFloats(source, slice);
        return uploadVector(values.data(), static_cast<int64_t>(values.size()));
    }

    std::unique_ptr<Matrix> loadMatrix(const TensorSource& source, const MatrixSpec& spec) override {
        auto matrix = std::make_unique<PlainMatrix>();
        for (const TensorSlice& slice : spec.weights) {
            const std::vector<float> values = readFloats(source, slice);
            matrix->values.insert(matrix->values.end(), values.begin(), values.end());
            matrix->rows += slice.rows();
            matrix->cols = slice.cols();
            matrix->dtype = source.info(slice.name).dtype;
        }
        for (const TensorSlice& slice : spec.biases) {
            const std::vector<float> values = readFloats(source, slice);
            matrix->bias.insert(matrix->bias.end(), values.begin(), values.end());
        }
        return matrix;
    }

    std::unique_ptr<ExpertSet> loadExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs) override {
        auto set = std::make_unique<PlainExperts>();
        set->nExperts = static_cast<int>(specs.size());
        for (const ExpertSpec& spec : specs) {
            PlainExperts::Expert& expert = set->experts.emplace_back();
            if (spec.gate.weights.empty()) continue;
            expert.gate = loadMatrix(source, spec.gate);
            expert.up = loadMatrix(source, spec.up);
            expert.down = loadMatrix(source, spec.down);
        }
        return set;
    }

    void run(const std::string&, const std::function<void()>& body) override { body(); }

    const StepInputs& upload(const Batch& batch) override { return step_ = hostStepInputs(batch); }

    void download(const Activations& from, int rows, float* dst) override {
        std::copy_n(from.f32, static_cast<size_t>(rows) * from.cols, dst);
    }

    void uploadActivations(const float* src, int rows, Activations& to) override {
        std::copy_n(src, static_cast<size_t>(rows) * to.cols, to.f32);
    }

    void clear(const StepInputs& step, Activations& x) override {
        std::fill_n(x.f32, static_cast<size_t>(step.nTokens) * x.cols, 0.0f);
    }

    void embed(const StepInputs& step, Activations& x) override {
        dequantize(step.embeddingType, step.embeddings, x.f32, static_cast<int64_t>(step.nTokens) * x.cols);
    }

    void addNorm(const StepInputs& step, const AddNorm& op) override {
        const int n = op.x->cols;
        std::vector<float> addend(n);
        for (int t = 0; t < step.nTokens; t++) {
            float* x = op.x->f32 + static_cast<size_t>(t) * n;
            if (op.scaledBase)
                for (int i = 0; i < n; i++) x[i] = op.alpha * op.scaledBase->f32[static_cast<size_t>(t) * n + i];
            if (op.y) {
                const float* y = op.y->f32 + static_cast<size_t>(t) * n;
                if (op.post)
                    normalize(*op.post, y, addend.data(), n);
                else
                    std::copy_n(y, n, addend.data());
                for (int i = 0; i < n; i++) x[i] += addend[i];
            }
            if (op.next) normalize(*op.next, x, op.out->f32 + static_cast<size_t>(t) * n, n);
        }
    }

    void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                bool accumulate) override {
        multiplyRows(step.nTokens, in, w, out, accumulate);
    }

    void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up, Activation act,
               Activations& out) override {
        for (int t = 0; t < step.nTokens; t++) {
            const std::vector<float> h = upGate(gate, up, act, in.f32 + static_cast<size_t>(t) * in.cols);
            std::copy(h.begin(), h.end(), out.f32 + static_cast<size_t>(t) * out.cols);
        }
    }

    void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, KvLayer& kv) override {
        const int d = shape.headDim;
        std::vector<float> normed(d);
        for (int t = 0; t < step.nTokens; t++) {
            float* row = qkv.f32 + static_cast<size_t>(t) * qkv.cols;
            for (int h = 0; h < shape.nHeads + shape.nKvHeads; h++) {
                float* head = row + h * d;
                if (const Norm* norm = h < shape.nHeads ? qNorm : kNorm) {
                    normalize(*norm, head, normed.data(), d);
                    std::copy(normed.begin(), normed.end(), head);
                }
                rotate(step, rope, t, head);
            }
            const float* k = row + shape.nHeads * d;
            const float* v = k + shape.nKvHeads * d;
            for (int h = 0; h < shape.nKvHeads; h++) {
                const size_t at = kvIndex(step, kv, step.sequences[t], step.positions[t], h);
                for (int i = 0; i < d; i++) {
                    storeKv(kv, kv.k, at + i, k[h * d + i]);
                    storeKv(kv, kv.v, at + i, v[h * d + i]);
                }
            }
        }
    }

    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   Activations& out) override {
        const int d = shape.headDim;
        for (int t = 0; t < step.nTokens; t++) {
            for (int h = 0; h < shape.nHeads; h++) {
                const int kvHead = (h + shape.headOffset) / shape.group;
                const float* q = qkv.f32 + static_cast<size_t>(t) * qkv.cols + h * d;
                std::vector<double> scores(step.contextLengths[t]);
                for (int p = 0; p < step.contextLengths[t]; p++) {
                    const size_t at = kvIndex(step, kv, step.sequences[t], p, kvHead);
                    for (int i = 0; i < d; i++) scores[p] += static_cast<double>(q[i]) * loadKv(kv, kv.k, at + i);
                    scores[p] /= std::sqrt(static_cast<double>(d));
                }
                const double largest = *std::max_element(scores.begin(), scores.end());
                double sum = 0.0;
                for (double& score : scores) sum += score = std::exp(score - largest);
                std::vector<double> mixed(d);
                for (int p = 0; p < step.contextLengths[t]; p++) {
                    const size_t at = kvIndex(step, kv, step.sequences[t], p, kvHead);
                    for (int i = 0; i < d; i++) mixed[i] += scores[p] / sum * loadKv(kv, kv.v, at + i);
                }
                float* o = out.f32 + static_cast<size_t>(t) * out.cols + h * d;
                for (int i = 0; i < d; i++) o[i] = static_cast<float>(mixed[i]);
            }
        }
    }

    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) override {
        for (int t = 0; t < step.nTokens; t++)
            routeToken(in.f32 + static_cast<size_t>(t) * in.cols, in.cols, router,
                       routing.experts + static_cast<size_t>(t) * router.topK,
                       routing.weights + static_cast<size_t>(t) * router.topK);
    }

    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertSet& experts,
                 Activations& out) override {
        const auto& set = static_cast<const PlainExperts&>(experts);
        for (int t = 0; t < step.nTokens; t++) {
            for (int slot = 0; slot < routing.topK; slot++) {
                const size_t at = static_cast<size_t>(t) * routing.topK + slot;
                const PlainExperts::Expert& expert = set.experts[routing.experts[at]];
                if (!expert.gate) continue;
                const std::vector<float> h =
                    upGate(expert.gate.get(), *expert.up, Activation::Silu, in.f32 + static_cast<size_t>(t) * in.cols);
                const std::vector<float> y = multiply(plain(*expert.down), h.data());
                for (int i = 0; i < out.cols; i++)
                    out.f32[static_cast<size_t>(t) * out.cols + i] += routing.weights[at] * y[i];
            }
        }
    }

    void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) override {
        for (int i = 0; i < step.nOutputs; i++)
            std::copy_n(x.f32 + static_cast<size_t>(step.outputRows[i]) * x.cols, x.cols,
                        out.f32 + static_cast<size_t>(i) * x.cols);
    }

    void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) override {
        multiplyRows(step.nOutputs, in, w, logits, false);
    }

    void topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k,
                   Activations& out) override {
        const int n = logits.cols;
        for (int i = 0; i < step.nOutputs; i++) {
            const float* row = logits.f32 + static_cast<size_t>(i) * n;
            std::vector<int> order(n);
            std::iota(order.begin(), order.end(), 0);
            const auto broken = std::find_if(row, row + n, [](float value) { return std::isnan(value); });
            if (broken == row + n)
                std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
            const double largest = broken == row + n ? (n > 0 ? row[order[0]] : -INFINITY) : NAN;
            double sum = 0.0;
            for (int j = 0; j < n; j++) sum += std::exp((row[j] - largest) / step.outputTemperatures[i]);
            float* to = out.f32 + static_cast<size_t>(i) * out.cols;
            to[0] = static_cast<float>(largest);
            to[1] = static_cast<float>(sum);
            for (int j = 0; j < k; j++) {
                to[2 + j] = j < n ? row[order[j]] : -INFINITY;
                to[2 + k + j] = j < n ? static_cast<float>(firstToken + order[j]) : -1.0f;
            }
        }
    }

  private:
    static void multiplyRows(int rows, const Activations& in, const Matrix& w, Activations& out, bool accumulate) {
        for (int t = 0; t < rows; t++) {
            const std::vector<float> y = multiply(plain(w), in.f32 + static_cast<size_t>(t) * in.cols);
            float* o = out.f32 + static_cast<size_t>(t) * out.cols;
            for (size_t i = 0; i < y.size(); i++) o[i] = (accumulate ? o[i] : 0.0f) + y[i];
        }
    }

    static void routeToken(const float* x, int dim, const Router& router, int32_t* experts, float* weights) {
        const int n = router.nExperts;
        std::vector<double> scores(n), choice(n);
        for (int e = 0; e < n; e++)
            for (int i = 0; i < dim; i++)
                scores[e] += static_cast<double>(router.weight.data[static_cast<size_t>(e) * dim + i]) * x[i];
        if (router.score == Router::Score::Sigmoid) {
            for (double& s : scores) s = 1.0 / (1.0 + std::exp(-s));
        } else {
            const double largest = *std::max_element(scores.begin(), scores.end());
            double sum = 0.0;
            for (double& s : scores) sum += s = std::exp(s - largest);
            for (double& s : scores) s /= sum;
        }
        for (int e = 0; e < n; e++) choice[e] = scores[e] + (router.bias.data ? router.bias.data[e] : 0.0);
        if (router.nGroups > 1) dropGroups(router, choice);

        std::vector<int> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return choice[a] > choice[b]; });
        double sum = 0.0;
        for (int k = 0; k < router.topK; k++) sum += scores[order[k]];
        for (int k = 0; k < router.topK; k++) {
            experts[k] = order[k];
            weights[k] = static_cast<float>(scores[order[k]] / (router.normalize ? sum + 1e-20 : 1.0) * router.scale);
        }
    }

    /// Leaves only the experts of the topGroups best groups in the running.
    static void dropGroups(const Router& router, std::vector<double>& choice) {
        const int width = router.nExperts / router.nGroups;
        std::vector<double> rank(router.nGroups);
        for (int g = 0; g < router.nGroups; g++) {
            std::vector<double> members(choice.begin() + g * width, choice.begin() + (g + 1) * width);
            std::sort(members.rbegin(), members.rend());
            rank[g] = members[0] + (width > 1 ? members[1] : 0.0);
        }
        std::vector<int> order(router.nGroups);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rank[a] > rank[b]; });
        for (int g = router.topGroups; g < router.nGroups; g++)
            std::fill_n(choice.begin() + order[g] * width, width, -std::numeric_limits<double>::infinity());
    }

    StepInputs step_;
    ReferenceLatentOps latentOps_;
};

}  // namespace

std::unique_ptr<Backend> makeReferenceBackend() {
    return std::make_unique<ReferenceBackend>();
}

}  // namespace dllama
