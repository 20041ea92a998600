#include "gpu/cuda-backend.hpp"

#include <nvtx3/nvToolsExt.h>

#include <bit>
#include <cstring>

#include "base/errors.hpp"
#include "gpu/attention-ops.hpp"
#include "gpu/cuda-device.hpp"
#include "gpu/cuda-inputs.hpp"
#include "gpu/kernel-choice.hpp"
#include "gpu/linear-ops.hpp"
#include "gpu/moe-ops.hpp"

namespace dllama {

using namespace gpu;

namespace {

class CudaBackend final : public Backend, public CudaDevice {
  public:
    explicit CudaBackend(const CudaOptions& options)
        : gpuIndex_(openDevice(options.gpuIndex)), handle_(makeStream()), loader_(gpuIndex_) {
        core_.options = options;
        // One division of L1 and shared memory for all kernels: an SM must be empty to change it.
        check(cudaDeviceSetCacheConfig(cudaFuncCachePreferShared), "shared memory");
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, gpuIndex_), "device properties");
        core_.stream = {.handle = handle_.get(),
                        .nSms = properties.multiProcessorCount,
                        .computeCapability = properties.major * 10 + properties.minor,
                        // Kernels also have a little static shared memory.
                        .sharedBytes = static_cast<int>(properties.sharedMemPerBlockOptin) - 1024,
                        .overlap = properties.major >= 9};
        name_ = fmt::format("cuda:{} ({})", gpuIndex_, properties.name);
    }
    ~CudaBackend() override { cudaStreamSynchronize(core_.stream.handle); }

    std::string name() const override { return name_; }
    bool isHost() const override { return false; }

    int gpuIndex() const override { return gpuIndex_; }
    const Stream& stream() const override { return core_.stream; }
    void updateForms(int rows, Activations& a) override { quantize(rows, a, core_.stream); }
    void forgetSteps() override {
        use();
        check(cudaStreamSynchronize(core_.stream.handle), "step");
        core_.graphs.clear();
    }

    Activations allocateActivations(int maxRows, int cols, bool quantized) override {
        use();
        const size_t values = alignUp(sizeof(float) * maxRows * cols);
        Activations a{maxRows, cols, nullptr, nullptr,
                      allocateDevice(values + (quantized ? quantBytes(maxRows, cols) : 0))};
        a.f32 = reinterpret_cast<float*>(a.memory.get());
        if (quantized) a.q80 = a.memory.get() + values;
        return a;
    }

    DeviceMemory allocate(size_t bytes) override {
        use();
        return allocateDevice(bytes);
    }

    Vector uploadVector(const float* values, int64_t n) override {
        use();
        Vector vector{n, nullptr, allocateDevice(sizeof(float) * n)};
        vector.data = reinterpret_cast<float*>(vector.memory.get());
        check(cudaMemcpy(vector.data, values, sizeof(float) * n, cudaMemcpyHostToDevice), "upload of a vector");
        return vector;
    }

    Vector loadVector(const TensorSource& source, const TensorSlice& slice) override {
        use();
        const int64_t n = slice.rows() * slice.cols();
        Vector vector{n, nullptr, allocateDevice(sizeof(float) * n)};
        vector.data = reinterpret_cast<float*>(vector.memory.get());
        loader_.floats(source, slice, vector.data);
        return vector;
    }

    std::unique_ptr<Matrix> loadMatrix(const TensorSource& source, const MatrixSpec& spec) override {
        return loader_.matrix(source, spec);
    }

    std::unique_ptr<ExpertSet> loadExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs) override {
        return loader_.experts(source, specs);
    }

    void run(const std::string& shape, const std::function<void()>& body) override;

    const StepInputs& upload(const Batch& batch) override {
        use();
        if (inputs_.upload(batch, core_.stream)) core_.graphs.clear();
        return inputs_.step();
    }

    void download(const Activations& from, int rows, float* dst) override {
        leaveDevice();
        const size_t bytes = sizeof(float) * rows * from.cols;
        if (bytes > downloadBytes_) {
            download_ = allocatePinned(bytes);
            downloadBytes_ = bytes;
        }
        check(cudaMemcpyAsync(download_.get(), from.f32, bytes, cudaMemcpyDeviceToHost, core_.stream.handle),
              "download");
        check(cudaStreamSynchronize(core_.stream.handle), "step");
        std::memcpy(dst, download_.get(), bytes);
    }

    void uploadActivations(const float* src, int rows, Activations& to) override {
        leaveDevice();
        check(cudaMemcpyAsync(to.f32, src, sizeof(float) * rows * to.cols, cudaMemcpyHostToDevice, core_.stream.handle),
              "upload");
        check(cudaStreamSynchronize(core_.stream.handle), "upload");
        quantize(rows, to, core_.stream);
    }

    void clear(const StepInputs& step, Activations& x) override {
        check(cudaMemsetAsync(x.f32, 0, sizeof(float) * step.nTokens * x.cols, core_.stream.handle), "clear");
        quantize(step.nTokens, x, core_.stream);
    }

    void embed(const StepInputs& step, Activations& x) override {
        launchWiden({step.embeddingType, reinterpret_cast<const uint8_t*>(step.embeddings), x.f32,
                     int64_t{step.nTokens} * x.cols},
                    core_.stream);
        quantize(step.nTokens, x, core_.stream);
    }

    void addNorm(const StepInputs& step, const AddNorm& op) override {
        AddNormParams p{};
        p.rows = step.nTokens;
        p.cols = op.x->cols;
        p.x = op.x->f32;
        p.y = op.y ? op.y->f32 : nullptr;
        p.scaledBase = op.scaledBase ? op.scaledBase->f32 : nullptr;
        p.alpha = op.alpha;
        p.hasPost = op.post != nullptr;
        p.hasNext = op.next != nullptr;
        if (op.post) p.post = normOf(*op.post);
        if (op.next) {
            p.next = normOf(*op.next);
            p.out = rowsOf(*op.out);
        }
        launchAddNorm(p, core_.stream);
    }

    void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                bool accumulate) override {
        linear_.multiply(step.nTokens, in, weightsOf(w), out.f32, out.cols, accumulate);
        quantize(step.nTokens, out, core_.stream);
    }

    void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up, Activation act,
               Activations& out) override {
        linear_.ffnUp(step.nTokens, in, gate ? &weightsOf(*gate) : nullptr, weightsOf(up), act, out);
    }

    void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, KvLayer& kv) override {
        attention_.ropeStore(step, qkv, shape, rope, qNorm, kNorm, kv);
        quantize(step.nTokens, qkv, core_.stream);
    }

    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   Activations& out) override {
        attention_.attention(step, qkv, shape, kv, out);
    }

    void attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) override {
        if (!attention_.attend(step, qkv, shape, rope, qNorm, kNorm, kv, out))
            Backend::attend(step, qkv, shape, rope, qNorm, kNorm, kv, out);
    }

    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) override {
        moe_.route(step, in, router, routing);
    }

    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertSet& experts,
                 Activations& out) override {
        moe_.experts(step, in, routing, static_cast<const CudaExperts&>(experts).weights, out);
        quantize(step.nTokens, out, core_.stream);
    }

    void moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden, Routing& routing,
             Activations& out) override {
        if (!moe_.moe(step, in, m, hidden, routing, out)) return Backend::moe(step, in, m, hidden, routing, out);
        quantize(step.nTokens, out, core_.stream);
    }

    void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) override {
        if (step.nOutputs == 0) return;
        GatherParams p{step.nOutputs, step.outputRows, rowsOf(x), rowsOf(out)};
        if (!x.q80) p.out.q = {};
        launchGather(p, core_.stream);
        if (!x.q80) quantize(step.nOutputs, out, core_.stream);
    }

    void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) override {
        if (step.nOutputs == 0) return;
        linear_.multiply(step.nOutputs, in, weightsOf(w), logits.f32, logits.cols, false);
        quantize(step.nOutputs, logits, core_.stream);
    }

    void topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k,
                   Activations& out) override {
        if (step.nOutputs == 0) return;
        DLLAMA_CHECK(canTopLogits(logits.cols, k));
        TopLogitsParams p{};
        p.rows = step.nOutputs;
        p.cols = logits.cols;
        p.k = k;
        p.firstToken = firstToken;
        p.logits = logits.f32;
        p.temperatures = step.outputTemperatures;
        p.keys = core_.scratch.get<unsigned long long>(Scratch::TopKeys, topLogitsKeys(p.rows, p.cols));
        p.parts = core_.scratch.get<float2>(Scratch::TopParts, topLogitsParts(p.rows, p.cols));
        p.arrived = core_.scratch.get<int32_t>(Scratch::Arrived, p.rows);
        p.out = out.f32;
        p.outCols = out.cols;
        launchTopLogits(p, core_.stream);
    }

    void beginRange(const char* name) override { nvtxRangePushA(name); }
    void endRange() override {
        // What went wrong is told where a result is waited for.
        static_cast<void>(cudaStreamSynchronize(core_.stream.handle));
        nvtxRangePop();
    }

  private:
    void use() { check(cudaSetDevice(gpuIndex_), "cudaSetDevice"); }
    /// The step leaves the device's own work: what follows depends on the host, so the shape cannot be recorded.
    void leaveDevice() {
        use();
        core_.graphs.leaveDevice();
    }

    int gpuIndex_;
    StreamHandle handle_;
    std::string name_;
    WeightLoader loader_;
    CudaCore core_;
    LinearOps linear_{core_};
    AttentionOps attention_{core_};
    MoeOps moe_{core_, linear_};
    CudaInputs inputs_;
    DeviceMemory download_;
    size_t downloadBytes_ = 0;
};

void CudaBackend::run(const std::string& shape, const std::function<void()>& body) {
    use();
    const StepInputs& step = inputs_.step();
    if (step.nTokens > kMaxGraphTokens) return body();
    // What kernels take from the batch as numbers, beside what the caller names.
    const std::string key = fmt::format("{}|{} {} {} {} {} {}", shape, step.nTokens, step.nSequences, step.nOutputs,
                                        std::bit_ceil(static_cast<unsigned>(step.maxContextLength)),
                                        static_cast<int>(step.embeddingType), ofDifferentSequences(*step.host));
    core_.graphs.run(key, body);
}

}  // namespace

std::unique_ptr<Backend> makeCudaBackend(const CudaOptions& options) {
    return std::make_unique<CudaBackend>(options);
}

CudaDevice& gpu::cudaDeviceOf(Backend& backend) {
    auto* device = dynamic_cast<CudaDevice*>(&backend);
    DLLAMA_CHECK(device != nullptr);
    return *device;
}

}  // namespace dllama
