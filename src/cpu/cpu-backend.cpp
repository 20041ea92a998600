#include "cpu/cpu-backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "backend/host-step.hpp"
#include "base/errors.hpp"
#include "cpu/attention.hpp"
#include "cpu/cpu-matrix.hpp"
#include "cpu/cpu-memory.hpp"
#include "cpu/cpu-work.hpp"
#include "cpu/experts.hpp"
#include "cpu/latent.hpp"
#include "cpu/norms.hpp"
#include "cpu/prefetcher.hpp"
#include "cpu/top-logits.hpp"
#include "tensor/blocks.hpp"

namespace dllama {

namespace {

/// The rows and inputs of a product, cut into work items: all inputs of some rows follow each other, so that the rows'
/// weights are still in a near cache.
struct ProductItems {
    int64_t rows;
    int nInputs;
    int rowsPerItem;

    int64_t inputItems() const { return (nInputs + kMaxItemInputs - 1) / kMaxItemInputs; }
    int64_t count() const { return (rows + rowsPerItem - 1) / rowsPerItem * inputItems(); }
    int64_t row(int64_t item) const { return item / inputItems() * rowsPerItem; }
    int nRows(int64_t item) const { return static_cast<int>(std::min<int64_t>(rowsPerItem, rows - row(item))); }
    int firstInput(int64_t item) const { return static_cast<int>(item % inputItems()) * kMaxItemInputs; }
    int inputs(int64_t item) const { return std::min(kMaxItemInputs, nInputs - firstInput(item)); }
};

class CpuBackend final : public Backend {
  public:
    CpuBackend(ThreadPool& pool, Isa isa)
        : isa_(isa), work_{pool, kernelsOf(isa)}, prefetcher_(pool, work_.kernels.groupRows) {}

    std::string name() const override {
        const int n = work_.pool.nThreads();
        return fmt::format("cpu ({}, {} thread{})", isaName(isa_), n, n == 1 ? "" : "s");
    }

    LatentOps* latentOps() override { return &latentOps_; }

    Activations allocateActivations(int maxRows, int cols, bool quantized) override {
        // No quantised matrix reads a row that is not made of whole blocks.
        quantized = quantized && cols % 32 == 0;
        const size_t values = static_cast<size_t>(maxRows) * cols;
        const size_t floatBytes = (values * sizeof(float) + 63) / 64 * 64;
        const size_t blockBytes = quantized ? values / 32 * sizeof(InputBlock) : 0;
        Activations a{maxRows, cols, nullptr, nullptr, allocateCpuMemory(floatBytes + blockBytes)};
        a.f32 = reinterpret_cast<float*>(a.memory.get());
        if (quantized) a.q80 = a.memory.get() + floatBytes;
        return a;
    }

    Activations rowsFrom(const Activations& a, int first) const override {
        const size_t values = static_cast<size_t>(first) * a.cols;
        return {a.maxRows - first, a.cols, a.f32 + values, a.q80 ? inputBlocks(a) + values / 32 : nullptr, nullptr};
    }

    DeviceMemory allocate(size_t bytes) override { return allocateCpuMemory(bytes); }

    Vector uploadVector(const float* values, int64_t n) override {
        Vector vector{n, nullptr, allocateCpuMemory(sizeof(float) * static_cast<size_t>(n))};
        vector.data = reinterpret_cast<float*>(vector.memory.get());
        std::copy_n(values, n, vector.data);
        return vector;
    }

    Vector loadVector(const TensorSource& source, const TensorSlice& slice) override {
        const std::vector<float> values = readFloats(source, slice);
        return uploadVector(values.data(), static_cast<int64_t>(values.size()));
    }

    std::unique_ptr<Matrix> loadMatrix(const TensorSource& source, const MatrixSpec& spec) override {
        return loadCpuMatrix(source, spec, work_.kernels.groupRows);
    }

    std::unique_ptr<ExpertSet> loadExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs) override {
        return loadCpuExperts(source, specs, work_.kernels.groupRows);
    }

    void run(const std::string&, const std::function<void()>& body) override { body(); }

    const StepInputs& upload(const Batch& batch) override { return step_ = hostStepInputs(batch); }

    void download(const Activations& from, int rows, float* dst) override {
        std::copy_n(from.f32, static_cast<size_t>(rows) * from.cols, dst);
    }

    void uploadActivations(const float* src, int rows, Activations& to) override {
        std::copy_n(src, static_cast<size_t>(rows) * to.cols, to.f32);
        quantizeRows(work_, rows, to);
    }

    void clear(const StepInputs& step, Activations& x) override {
        const size_t values = static_cast<size_t>(step.nTokens) * x.cols;
        std::fill_n(x.f32, values, 0.0f);
        if (x.q80) std::fill_n(inputBlocks(x), values / 32, InputBlock{});
    }

    void embed(const StepInputs& step, Activations& x) override {
        const size_t rowBytes = storedBytes(step.embeddingType, x.cols);
        work_.forEach(step.nTokens, [&](int64_t t, int) {
            dequantize(step.embeddingType, step.embeddings + t * rowBytes, x.f32 + t * x.cols, x.cols);
        });
        quantizeRows(work_, step.nTokens, x);
    }

    void addNorm(const StepInputs& step, const AddNorm& op) override {
        const int n = op.x->cols;
        work_.forEach(step.nTokens, [&](int64_t t, int) {
            const int64_t row = t * n;
            float* x = op.x->f32 + row;
            if (op.scaledBase)
                for (int i = 0; i < n; i++) x[i] = op.alpha * op.scaledBase->f32[row + i];
            if (op.y && op.post)
                addNormalized(*op.post, op.y->f32 + row, x, n);
            else if (op.y)
                for (int i = 0; i < n; i++) x[i] += op.y->f32[row + i];
            if (op.x->q80) work_.kernels.quantize(x, n, inputBlocks(*op.x) + row / 32);
            if (!op.next) return;
            normalize(*op.next, x, op.out->f32 + row, n);
            if (op.out->q80) work_.kernels.quantize(op.out->f32 + row, n, inputBlocks(*op.out) + row / 32);
        });
    }

    void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                bool accumulate) override {
        product(step.nTokens, in, cpuMatrix(w), out, accumulate);
    }

    void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up, Activation act,
               Activations& out) override {
        checkInput(in, cpuMatrix(up));
        DLLAMA_CHECK(out.cols == up.rows);
        const auto activate = act == Activation::Silu ? work_.kernels.silu : work_.kernels.geluTanh;
        constexpr int kRows = kFfnItemRows;
        const ProductItems items{up.rows, step.nTokens, kRows};
        const int64_t near = prefetcher_.take(cpuMatrix(up), kRows) * items.inputItems();
        work_.forEachNear(items.count(), near, [&](int64_t item, int) {
            alignas(64) float gateValues[kMaxItemInputs * kRows], upValues[kMaxItemInputs * kRows];
            const int nRows = items.nRows(item);
            if (gate) multiplyItem(cpuMatrix(*gate), in, items, item, gateValues);
            multiplyItem(cpuMatrix(up), in, items, item, upValues);
            for (int i = 0; i < items.inputs(item); i++) {
                const int64_t at = static_cast<int64_t>(items.firstInput(item) + i) * out.cols + items.row(item);
                activate(gate ? gateValues + i * kRows : nullptr, upValues + i * kRows, out.f32 + at, nRows);
                if (out.q80) work_.kernels.quantize(out.f32 + at, kRows, inputBlocks(out) + at / 32);
            }
        });
    }

    void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, KvLayer& kv) override {
        ropeStoreCpu(work_, step, qkv, shape, rope, qNorm, kNorm, kv);
    }

    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   Activations& out) override {
        attendCpu(work_, attentionScratch_, step, qkv, shape, kv, out);
    }

    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) override {
        const int n = router.nExperts;
        constexpr int kExpertsPerItem = 16;
        const int64_t itemsPerToken = (n + kExpertsPerItem - 1) / kExpertsPerItem;
        // Each token: logits (n), then room for the choice (n + nGroups).
        const int64_t stride = 2 * n + router.nGroups;
        auto* scratch = routerScratch_.get<float>(static_cast<size_t>(step.nTokens * stride));
        work_.forEach(step.nTokens * itemsPerToken, [&](int64_t item, int) {
            const int64_t t = item / itemsPerToken;
            const auto begin = static_cast<int>(item % itemsPerToken) * kExpertsPerItem;
            for (int e = begin; e < std::min(begin + kExpertsPerItem, n); e++)
                scratch[t * stride + e] =
                    laneDot(router.weight.data + static_cast<size_t>(e) * in.cols, in.f32 + t * in.cols, in.cols);
        });
        work_.forEach(step.nTokens, [&](int64_t t, int) {
            float* logits = scratch + t * stride;
            chooseExperts(router, logits, logits + n, routing.experts + t * router.topK,
                          routing.weights + t * router.topK);
        });
    }

    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertSet& experts,
                 Activations& out) override {
        runExperts(work_, expertScratch_, step, in, routing, static_cast<const CpuExpertSet&>(experts), out);
    }

    void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) override {
        for (int64_t i = 0; i < step.nOutputs; i++)
            std::copy_n(x.f32 + static_cast<int64_t>(step.outputRows[i]) * x.cols, x.cols, out.f32 + i * x.cols);
        quantizeRows(work_, step.nOutputs, out);
    }

    void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) override {
        product(step.nOutputs, in, cpuMatrix(w), logits, false);
    }

    void topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k,
                   Activations& out) override {
        findTopLogits(work_, bestScratch_, step, logits, firstToken, k, out);
    }

    void prefetch(const Matrix& next, const Matrix* beside) override {
        const CpuMatrix& w = cpuMatrix(next);
        prefetcher_.plan(w, beside ? &cpuMatrix(*beside) : nullptr, beside ? kFfnItemRows : productItemRows(w));
    }

    bool prefetchPiece() override { return prefetcher_.piece(); }
    void endPrefetch() override { prefetcher_.end(); }

  private:
    /// An item of ffnUp() computes one Q80 block of each input.
    static constexpr int kFfnItemRows = 32;
    int productItemRows(const CpuMatrix& w) const { return itemRows(w.rows, 16, work_.pool.nThreads()); }

    static void checkInput(const Activations& in, const CpuMatrix& w) {
        DLLAMA_CHECK(in.cols == w.cols && (in.q80 || !isQuantized(w.dtype)));
    }

    /// values[i * rowsPerItem + r] for the item's inputs and rows.
    void multiplyItem(const CpuMatrix& w, const Activations& in, const ProductItems& items, int64_t item,
                      float* values) const {
        int32_t inputRows[kMaxItemInputs] = {};
        const int n = items.inputs(item);
        for (int i = 0; i < n; i++) inputRows[i] = items.firstInput(item) + i;
        multiply(work_.kernels, w, items.row(item), items.nRows(item), inputView(in), inputRows, n, values,
                 items.rowsPerItem);
    }

    void product(int nInputs, const Activations& in, const CpuMatrix& w, Activations& out, bool accumulate) {
        checkInput(in, w);
        DLLAMA_CHECK(out.cols == w.rows);
        const int64_t inputItems = (nInputs + kMaxItemInputs - 1) / kMaxItemInputs;
        const ProductItems items{w.rows, nInputs, itemRows(w.rows * inputItems, 16, work_.pool.nThreads())};
        const int64_t near = prefetcher_.take(w, items.rowsPerItem) * items.inputItems();
        work_.forEachNear(items.count(), near, [&](int64_t item, int) {
            alignas(64) float values[kMaxItemInputs * kMaxItemRows];
            multiplyItem(w, in, items, item, values);
            const int nRows = items.nRows(item);
            for (int i = 0; i < items.inputs(item); i++) {
                const float* from = values + i * items.rowsPerItem;
                float* to = out.f32 + static_cast<int64_t>(items.firstInput(item) + i) * out.cols + items.row(item);
                for (int r = 0; r < nRows; r++) to[r] = accumulate ? to[r] + from[r] : from[r];
            }
        });
        quantizeRows(work_, nInputs, out);
    }

    Isa isa_;
    CpuWork work_;
    Prefetcher prefetcher_;
    StepInputs step_;
    AttentionScratch attentionScratch_;
    CpuLatentOps latentOps_{work_, attentionScratch_};
    ExpertScratch expertScratch_;
    Scratch routerScratch_;
    Scratch bestScratch_;
};

}  // namespace

std::unique_ptr<Backend> makeCpuBackend(ThreadPool& pool, Isa isa) {
    return std::make_unique<CpuBackend>(pool, isa);
}

}  // namespace dllama
