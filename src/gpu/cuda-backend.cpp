#include "gpu/cuda-backend.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <optional>

#include "base/errors.hpp"
#include "gpu/cublas-gemm.hpp"
#include "gpu/cuda-device.hpp"
#include "gpu/cuda-inputs.hpp"
#include "gpu/cuda-weights.hpp"
#include "gpu/kernels/kernels.hpp"

namespace dllama {

using namespace gpu;

namespace {

constexpr int kOldestCapability = 75;
/// Steps of at most this many tokens are recorded; longer ones hide their launches behind their work.
constexpr int kMaxGraphTokens = 64;
constexpr size_t kMaxGraphs = 64;
/// From this many rows on, matrices are multiplied as a prompt's; from this many tokens a sequence, attention is.
constexpr int kPrefillRows = kMaxFewRows + 1, kPrefillTokensOfSequence = 8;
/// Up to this many tokens, experts are read token by token.
constexpr int kFewExpertTokens = kFewRouted;

/// Scratch memory of operations, by what it holds. Grows in the first step of a shape, which is never recorded.
enum class Scratch {
    Staged,
    RowScale,
    Gate,
    Up,
    Logits,
    Arrived,
    BestKeys,
    BestParts,
    Partial,
    PartialStats,
    Hidden,
    HiddenQ80,
    HiddenScales,
    ExpertOut,
    Sorting,
    kCount
};

size_t alignUp(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/// The layout of Activations::q80: values, then scales.
QuantRows quantRows(void* memory, int maxRows, int cols) {
    QuantRows q;
    q.groups = ceilDiv(cols, kGroup);
    q.values = static_cast<int8_t*>(memory);
    if (memory)
        q.scales = reinterpret_cast<float*>(q.values + alignUp(static_cast<size_t>(maxRows) * q.groups * kGroup));
    return q;
}
size_t quantBytes(int maxRows, int cols) {
    const size_t groups = ceilDiv(cols, kGroup), rows = maxRows;
    return alignUp(rows * groups * kGroup) + rows * groups * 4 * sizeof(float);
}

Rows rowsOf(const Activations& a) {
    return {a.f32, a.cols, quantRows(a.q80, a.maxRows, a.cols)};
}

NormWeights normOf(const Norm& norm) {
    return {norm.weight.data, norm.bias.data, norm.eps, norm.kind == Norm::Kind::Layer};
}

/// Whether no two tokens are of one sequence.
bool ofDifferentSequences(const Batch& batch) {
    return std::adjacent_find(batch.sequences.begin(), batch.sequences.end()) == batch.sequences.end();
}

class CudaBackend final : public Backend, public CudaDevice {
  public:
    explicit CudaBackend(const CudaOptions& options)
        : options_(options), gpuIndex_(openDevice(options.gpuIndex)), handle_(makeStream()), loader_(gpuIndex_) {
        // One division of L1 and shared memory for all kernels: an SM must be empty to change it.
        check(cudaDeviceSetCacheConfig(cudaFuncCachePreferShared), "shared memory");
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, gpuIndex_), "device properties");
        stream_.handle = handle_.get();
        stream_.nSms = properties.multiProcessorCount;
        stream_.computeCapability = properties.major * 10 + properties.minor;
        // Kernels also have a little static shared memory.
        stream_.sharedBytes = static_cast<int>(properties.sharedMemPerBlockOptin) - 1024;
        stream_.overlap = properties.major >= 9;
        name_ = fmt::format("cuda:{} ({})", gpuIndex_, properties.name);
    }
    ~CudaBackend() override { cudaStreamSynchronize(stream_.handle); }

    std::string name() const override { return name_; }
    bool isHost() const override { return false; }

    int gpuIndex() const override { return gpuIndex_; }
    const Stream& stream() const override { return stream_; }
    void updateForms(int rows, Activations& a) override { quantize(rows, a); }
    void forgetSteps() override {
        use();
        check(cudaStreamSynchronize(stream_.handle), "step");
        graphs_.clear();
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

    KvLayer allocateKvLayer(DType dtype, int nBlocks, int nKvHeads, int headDim) override {
        use();
        const size_t half = blockBytes(dtype) * nBlocks * nKvHeads * kKvBlockPositions * headDim;
        KvLayer kv{dtype, nBlocks, nKvHeads, headDim, nullptr, nullptr, allocateDevice(2 * half)};
        kv.k = kv.memory.get();
        kv.v = kv.memory.get() + half;
        return kv;
    }

    Routing allocateRouting(int maxRows, int topK) override {
        use();
        const size_t n = static_cast<size_t>(maxRows) * topK;
        Routing routing{topK, nullptr, nullptr, allocateDevice(8 * n)};
        routing.experts = reinterpret_cast<int32_t*>(routing.memory.get());
        routing.weights = reinterpret_cast<float*>(routing.memory.get() + 4 * n);
        return routing;
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
        if (inputs_.upload(batch, stream_)) graphs_.clear();
        return inputs_.step();
    }

    void download(const Activations& from, int rows, float* dst) override {
        leaveDevice();
        const size_t bytes = sizeof(float) * rows * from.cols;
        if (bytes > downloadBytes_) {
            download_ = allocatePinned(bytes);
            downloadBytes_ = bytes;
        }
        check(cudaMemcpyAsync(download_.get(), from.f32, bytes, cudaMemcpyDeviceToHost, stream_.handle), "download");
        check(cudaStreamSynchronize(stream_.handle), "step");
        std::memcpy(dst, download_.get(), bytes);
    }

    void uploadActivations(const float* src, int rows, Activations& to) override {
        leaveDevice();
        check(cudaMemcpyAsync(to.f32, src, sizeof(float) * rows * to.cols, cudaMemcpyHostToDevice, stream_.handle),
              "upload");
        check(cudaStreamSynchronize(stream_.handle), "upload");
        quantize(rows, to);
    }

    void clear(const StepInputs& step, Activations& x) override {
        check(cudaMemsetAsync(x.f32, 0, sizeof(float) * step.nTokens * x.cols, stream_.handle), "clear");
        quantize(step.nTokens, x);
    }

    void embed(const StepInputs& step, Activations& x) override {
        launchWiden({step.embeddingType, reinterpret_cast<const uint8_t*>(step.embeddings), x.f32,
                     int64_t{step.nTokens} * x.cols},
                    stream_);
        quantize(step.nTokens, x);
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
        launchAddNorm(p, stream_);
    }

    void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                bool accumulate) override {
        multiply(step.nTokens, in, weightsOf(w), out.f32, out.cols, accumulate);
        quantize(step.nTokens, out);
    }

    void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up, Activation act,
               Activations& out) override;

    void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, KvLayer& kv) override;

    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   Activations& out) override;

    void attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) override;

    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) override {
        RouteParams p{};
        p.nTokens = step.nTokens;
        p.in = rowsOf(in);
        p.sigmoid = router.score == Router::Score::Sigmoid;
        p.normalize = router.normalize;
        p.nExperts = router.nExperts;
        p.topK = router.topK;
        p.nGroups = router.nGroups;
        p.topGroups = router.topGroups;
        p.scale = router.scale;
        p.weight = router.weight.data;
        p.bias = router.bias.data;
        p.logits = scratch<float>(Scratch::Logits, size_t(step.nTokens) * router.nExperts);
        p.arrived = scratch<int32_t>(Scratch::Arrived, step.nTokens);
        p.experts = routing.experts;
        p.weights = routing.weights;
        launchRoute(p, stream_);
    }

    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertSet& experts,
                 Activations& out) override;

    void moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden, Routing& routing,
             Activations& out) override;

    void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) override {
        if (step.nOutputs == 0) return;
        GatherParams p{step.nOutputs, step.outputRows, rowsOf(x), rowsOf(out)};
        if (!x.q80) p.out.q = {};
        launchGather(p, stream_);
        if (!x.q80) quantize(step.nOutputs, out);
    }

    void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) override {
        if (step.nOutputs == 0) return;
        multiply(step.nOutputs, in, weightsOf(w), logits.f32, logits.cols, false);
        quantize(step.nOutputs, logits);
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
        p.keys = scratch<unsigned long long>(Scratch::BestKeys, topLogitsKeys(p.rows, p.cols));
        p.parts = scratch<float2>(Scratch::BestParts, topLogitsParts(p.rows, p.cols));
        p.arrived = scratch<int32_t>(Scratch::Arrived, p.rows);
        p.out = out.f32;
        p.outCols = out.cols;
        launchTopLogits(p, stream_);
    }

  private:
    struct Recording {
        bool recordable = true;
        GraphHandle graph{nullptr, cudaGraphExecDestroy};
    };

    static int openDevice(int index);
    void use() { check(cudaSetDevice(gpuIndex_), "cudaSetDevice"); }
    /// The step leaves the device's own work: what follows depends on the host, so the shape cannot be recorded.
    void leaveDevice() {
        use();
        if (running_) running_->recordable = false;
    }

    static const Weights& weightsOf(const Matrix& matrix) { return static_cast<const CudaMatrix&>(matrix).weights; }

    void quantize(int rows, Activations& a) {
        if (a.q80) launchQuantize({a.f32, rows, a.cols, quantRows(a.q80, a.maxRows, a.cols)}, stream_);
    }

    template <typename T>
    T* scratch(Scratch which, size_t n) {
        Memory& memory = scratch_[static_cast<size_t>(which)];
        const size_t bytes = n * sizeof(T);
        if (bytes > memory.bytes) {
            DLLAMA_CHECK(!recording_);
            check(cudaStreamSynchronize(stream_.handle), "scratch memory");
            graphs_.clear();
            memory.data = nullptr;
            memory.data = allocateDevice(bytes);
            memory.bytes = bytes;
        }
        return reinterpret_cast<T*>(memory.data.get());
    }

    bool usesMatmul(int rows, DType dtype) const {
        return rows >= kPrefillRows && options_.halfProducts && canMatmul(dtype, stream_);
    }
    bool usesLibrary(int rows) const {
        return rows > 1 && rows >= options_.libraryRows && options_.halfProducts && !recording_;
    }
    /// Nothing has to be widened here: it pays wherever steps are not recorded.
    bool usesLibraryForFloats(int rows, DType dtype) const {
        return CublasGemm::takesFloats(dtype, stream_) && options_.halfProducts && !recording_ &&
               (rows > kMaxGraphTokens || usesLibrary(rows));
    }
    CublasGemm& library() {
        if (!library_) library_ = std::make_unique<CublasGemm>(stream_);
        return *library_;
    }
    /// The rows' Q80 form as f16 for launchMatmul.
    void stage(int rows, const QuantRows& q, MatmulParams& p);
    void launchProduct(const MatmulParams& p) {
        p.w.dtype == DType::Q40 ? launchMatmulQ40(p, stream_) : launchMatmulQ80(p, stream_);
    }
    void multiply(int rows, const Activations& in, const Weights& w, float* out, int outCols, bool accumulate);
    static RopeStoreParams ropeParams(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                                      const Rope& rope, const Norm* qNorm, const Norm* kNorm, const KvLayer& kv);
    static AttentionParams attentionParams(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                                           const KvLayer& kv, const Activations& out);
    void attentionOfFew(AttentionParams p);
    /// Few tokens' experts, and a shared one if it has rows.
    void fewExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                    const SharedExpert& shared, Activations& out);
    void groupedExperts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertWeights& w,
                        Activations& out);

    CudaOptions options_;
    int gpuIndex_;
    StreamHandle handle_;
    Stream stream_;
    std::string name_;
    WeightLoader loader_;
    std::unique_ptr<CublasGemm> library_;  // when first needed
    CudaInputs inputs_;
    struct Memory {
        size_t bytes = 0;
        DeviceMemory data;
    };
    Memory scratch_[static_cast<size_t>(Scratch::kCount)];
    std::map<std::string, Recording> graphs_;
    std::optional<Recording> running_;  // of the body that run() executes directly
    bool recording_ = false;
    DeviceMemory download_;
    size_t downloadBytes_ = 0;
};

int CudaBackend::openDevice(int index) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    int driver = 0;
    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
        throw CudaError("no NVIDIA driver; --device cpu works without one");
    if (status == cudaErrorInsufficientDriver)
        throw CudaError("the NVIDIA driver is too old for this build (CUDA {}.{}); --device cpu works without it",
                        CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
        throw CudaError("no NVIDIA GPU; --device cpu works without one");
    check(status, "GPU");
    if (index < 0 || index >= count) throw CudaError("no GPU {}: this machine has {}", index, count);
    check(cudaSetDevice(index), "cudaSetDevice");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "device properties");
    if (properties.major * 10 + properties.minor < kOldestCapability)
        throw CudaError("{}: compute capability {}.{}, at least 7.5 is needed", properties.name, properties.major,
                        properties.minor);
    if (!hasDeviceCode())
        throw CudaError("{}: this build has no code for compute capability {}.{}", properties.name, properties.major,
                        properties.minor);
    return index;
}

void CudaBackend::run(const std::string& shape, const std::function<void()>& body) {
    use();
    const StepInputs& step = inputs_.step();
    if (step.nTokens > kMaxGraphTokens) return body();
    // What kernels take from the batch as numbers, beside what the caller names.
    const std::string key = fmt::format("{}|{} {} {} {} {} {}", shape, step.nTokens, step.nSequences, step.nOutputs,
                                        std::bit_ceil(static_cast<unsigned>(step.maxContextLength)),
                                        static_cast<int>(step.embeddingType), ofDifferentSequences(*step.host));
    const auto found = graphs_.find(key);
    if (found == graphs_.end()) {
        running_.emplace();
        body();
        if (graphs_.size() >= kMaxGraphs) graphs_.clear();
        graphs_[key] = std::move(*running_);
        running_.reset();
        return;
    }
    Recording& recording = found->second;
    if (!recording.recordable) return body();
    if (!recording.graph) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(stream_.handle, cudaStreamCaptureModeThreadLocal), "recording a step");
        recording_ = true;
        try {
            body();
        } catch (...) {
            recording_ = false;
            if (cudaStreamEndCapture(stream_.handle, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
            throw;
        }
        recording_ = false;
        check(cudaStreamEndCapture(stream_.handle, &graph), "recording a step");
        cudaGraphExec_t executable = nullptr;
        const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "recording a step");
        recording.graph.reset(executable);
    }
    check(cudaGraphLaunch(recording.graph.get(), stream_.handle), "step");
}

void CudaBackend::stage(int rows, const QuantRows& q, MatmulParams& p) {
    auto* staged = scratch<__half>(Scratch::Staged, static_cast<size_t>(rows) * q.groups * kGroup);
    auto* rowScale = scratch<float>(Scratch::RowScale, rows);
    launchStageRows({rows, q, staged, rowScale}, stream_);
    p.a = staged;
    p.rowScale = rowScale;
}

void CudaBackend::multiply(int rows, const Activations& in, const Weights& w, float* out, int outCols,
                           bool accumulate) {
    const LinearParams p{rows, rowsOf(in), w, out, outCols, accumulate};
    if (usesLibraryForFloats(rows, w.dtype)) return library().multiplyFloats(rows, in.f32, w, out, outCols, accumulate);
    if (!isQuantized(w.dtype)) return launchLinearFloat(p, stream_);
    DLLAMA_CHECK(in.q80 != nullptr);
    if (rows == 1) return launchLinear(p, stream_);
    if (usesLibrary(rows)) {
        library().stage(rows, p.in.q);
        return library().multiply(rows, w, out, outCols, accumulate);
    }
    if (usesMatmul(rows, w.dtype)) {
        MatmulParams m{};
        m.m = rows;
        m.w = w;
        m.out = out;
        m.outCols = outCols;
        m.accumulate = accumulate;
        stage(rows, p.in.q, m);
        return launchProduct(m);
    }
    for (int row = 0; row < rows; row += kMaxFewRows) {
        LinearParams few = p;
        few.m = std::min(kMaxFewRows, rows - row);
        few.in.q.values += static_cast<size_t>(row) * few.in.q.groups * kGroup;
        few.in.q.scales += static_cast<size_t>(row) * few.in.q.groups * 4;
        few.out += static_cast<size_t>(row) * outCols;
        launchLinearFew(few, stream_);
    }
}

void CudaBackend::ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up,
                        Activation act, Activations& out) {
    const int rows = step.nTokens;
    const Weights& upWeights = weightsOf(up);
    const Rows to = rowsOf(out);
    if (gate && isQuantized(upWeights.dtype) && weightsOf(*gate).dtype == upWeights.dtype) {
        if (rows == 1) return launchFfnUp({rowsOf(in), weightsOf(*gate), upWeights, act, to}, stream_);
        if (usesLibrary(rows)) {
            const size_t size = static_cast<size_t>(rows) * out.cols;
            auto* gateOut = scratch<float>(Scratch::Gate, size);
            auto* upOut = scratch<float>(Scratch::Up, size);
            library().stage(rows, rowsOf(in).q);
            library().multiply(rows, weightsOf(*gate), gateOut, out.cols, false);
            library().multiply(rows, upWeights, upOut, out.cols, false);
            return launchGlu({rows, out.cols, gateOut, upOut, act, to}, stream_);
        }
        if (usesMatmul(rows, upWeights.dtype)) {
            MatmulParams p{};
            p.m = rows;
            p.w = weightsOf(*gate);
            p.up = upWeights;
            p.act = act;
            p.out = to.f32;
            p.outCols = to.cols;
            p.q = to.q;
            stage(rows, rowsOf(in).q, p);
            return launchProduct(p);
        }
    }
    const size_t size = static_cast<size_t>(rows) * out.cols;
    auto* gateOut = gate ? scratch<float>(Scratch::Gate, size) : nullptr;
    auto* upOut = scratch<float>(Scratch::Up, size);
    if (gate) multiply(rows, in, weightsOf(*gate), gateOut, out.cols, false);
    multiply(rows, in, upWeights, upOut, out.cols, false);
    launchGlu({rows, out.cols, gateOut, upOut, act, to}, stream_);
}

RopeStoreParams CudaBackend::ropeParams(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                                        const Rope& rope, const Norm* qNorm, const Norm* kNorm, const KvLayer& kv) {
    RopeStoreParams p{};
    p.nTokens = step.nTokens;
    p.maxBlocks = step.maxBlocks;
    p.qkv = qkv.f32;
    p.qkvCols = qkv.cols;
    p.nHeads = shape.nHeads;
    p.nKvHeads = shape.nKvHeads;
    p.headDim = shape.headDim;
    p.interleaved = rope.style == Rope::Style::Interleaved;
    p.parts = rope.parts;
    p.rotaryDim = rope.rotaryDim;
    p.cos = rope.cos.data;
    p.sin = rope.sin.data;
    p.hasQNorm = qNorm != nullptr;
    p.hasKNorm = kNorm != nullptr;
    if (qNorm) p.qNorm = normOf(*qNorm);
    if (kNorm) p.kNorm = normOf(*kNorm);
    p.k = kv.k;
    p.v = kv.v;
    p.f32Cache = kv.dtype == DType::F32;
    p.positions = step.positions;
    p.ropePositions = step.ropePositions;
    p.sequences = step.sequences;
    p.blockTables = step.blockTables;
    return p;
}

AttentionParams CudaBackend::attentionParams(const StepInputs& step, const Activations& qkv,
                                             const AttentionShape& shape, const KvLayer& kv, const Activations& out) {
    AttentionParams p{};
    p.nTokens = step.nTokens;
    p.nSequences = step.nSequences;
    p.maxBlocks = step.maxBlocks;
    p.maxContextLength = static_cast<int>(std::bit_ceil(static_cast<unsigned>(step.maxContextLength)));
    p.qkv = qkv.f32;
    p.qkvCols = qkv.cols;
    p.nHeads = shape.nHeads;
    p.nKvHeads = shape.nKvHeads;
    p.headDim = shape.headDim;
    p.group = shape.group;
    p.headOffset = shape.headOffset;
    p.k = kv.k;
    p.v = kv.v;
    p.f32Cache = kv.dtype == DType::F32;
    p.contextLengths = step.contextLengths;
    p.sequences = step.sequences;
    p.blockTables = step.blockTables;
    p.out = rowsOf(out);
    p.nSplits = 1;
    return p;
}

void CudaBackend::ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                            const Norm* qNorm, const Norm* kNorm, KvLayer& kv) {
    launchRopeStore(ropeParams(step, qkv, shape, rope, qNorm, kNorm, kv), stream_);
    quantize(step.nTokens, qkv);
}

void CudaBackend::attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                            const KvLayer& kv, Activations& out) {
    const AttentionParams p = attentionParams(step, qkv, shape, kv, out);
    if (step.nTokens >= kPrefillTokensOfSequence * step.nSequences && canAttentionPrefill(p, stream_))
        return launchAttentionPrefill(p, stream_);
    if (!canAttentionDecode(p, stream_)) return launchAttentionPlain(p, stream_);
    attentionOfFew(p);
}

void CudaBackend::attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                         const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) {
    AttentionParams p = attentionParams(step, qkv, shape, kv, out);
    p.turns = true;
    p.rope = ropeParams(step, qkv, shape, rope, qNorm, kNorm, kv);
    if (!ofDifferentSequences(*step.host) || !canAttentionDecode(p, stream_))
        return Backend::attend(step, qkv, shape, rope, qNorm, kNorm, kv, out);
    attentionOfFew(p);
}

void CudaBackend::attentionOfFew(AttentionParams p) {
    p.nSplits = attentionDecodeSplits(p, stream_);
    const size_t results = static_cast<size_t>(p.nTokens) * p.nHeads * p.nSplits;
    p.partial = scratch<float>(Scratch::Partial, p.nSplits > 1 ? results * p.headDim : 0);
    p.partialStats = scratch<float>(Scratch::PartialStats, p.nSplits > 1 ? results * 2 : 0);
    launchAttentionDecode(p, stream_);
}

void CudaBackend::experts(const StepInputs& step, const Activations& in, const Routing& routing,
                          const ExpertSet& experts, Activations& out) {
    const ExpertWeights& w = static_cast<const CudaExperts&>(experts).weights;
    if (w.gate.rows == 0) return;  // all experts are other ranks'
    if (step.nTokens > kFewExpertTokens && usesMatmul(kPrefillRows, w.gate.dtype))
        groupedExperts(step, in, routing, w, out);
    else
        fewExperts(step, in, routing, w, {}, out);
    quantize(step.nTokens, out);
}

void CudaBackend::moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden,
                      Routing& routing, Activations& out) {
    const ExpertWeights none, &w = m.experts ? static_cast<const CudaExperts&>(*m.experts).weights : none;
    const auto alike = [](const Matrix& shared, const Weights& routed) {
        const Weights& s = weightsOf(shared);
        return s.dtype == routed.dtype && !s.bias;
    };
    if (step.nTokens > kFewRouted || w.gate.rows == 0 || !isQuantized(w.gate.dtype) || !m.gate ||
        !alike(*m.gate, w.gate) || !alike(*m.up, w.up) || !alike(*m.down, w.down))
        return Backend::moe(step, in, m, hidden, routing, out);
    route(step, in, *m.router, routing);
    fewExperts(step, in, routing, w, {weightsOf(*m.gate), weightsOf(*m.up), weightsOf(*m.down), rowsOf(hidden).q}, out);
    quantize(step.nTokens, out);
}

void CudaBackend::fewExperts(const StepInputs& step, const Activations& in, const Routing& routing,
                             const ExpertWeights& w, const SharedExpert& shared, Activations& out) {
    const int pairs = step.nTokens * routing.topK, ffn = w.gate.rows;
    ExpertsDecodeParams p{};
    p.nTokens = step.nTokens;
    p.topK = routing.topK;
    p.in = rowsOf(in);
    p.w = w;
    p.experts = routing.experts;
    p.weights = routing.weights;
    p.hidden.cols = ffn;
    if (isQuantized(w.gate.dtype)) {
        p.hidden.q.groups = w.down.groups;
        p.hidden.q.values = scratch<int8_t>(Scratch::HiddenQ80, size_t(pairs) * w.down.groups * kGroup);
        p.hidden.q.scales = scratch<float>(Scratch::HiddenScales, size_t(pairs) * w.down.groups * 4);
    } else {
        p.hidden.f32 = scratch<float>(Scratch::Hidden, size_t(pairs) * ffn);
    }
    p.out = out.f32;
    p.outCols = out.cols;
    p.shared = shared;
    launchExpertsDecode(p, stream_);
}

void CudaBackend::groupedExperts(const StepInputs& step, const Activations& in, const Routing& routing,
                                 const ExpertWeights& w, Activations& out) {
    const int pairs = step.nTokens * routing.topK, maxTiles = pairs / kExpertTileRows + w.nExperts;
    // Tiles, their number, then two arrays of the pairs.
    auto* tiles = scratch<ExpertTile>(Scratch::Sorting, maxTiles + 1 + (2 * pairs + 3) / 4);
    auto* nTiles = reinterpret_cast<int32_t*>(tiles + maxTiles);
    int32_t* rowToken = nTiles + 4;
    int32_t* rowOf = rowToken + pairs;
    launchSortExperts(
        {step.nTokens, routing.topK, routing.experts, w.slots, w.nExperts, rowToken, rowOf, tiles, nTiles}, stream_);
    MatmulParams p{};
    p.m = pairs;
    p.tiles = tiles;
    p.nTiles = nTiles;
    p.maxTiles = maxTiles;

    p.w = w.gate;
    p.up = w.up;
    p.rowIndex = rowToken;
    p.q.groups = w.down.groups;
    p.q.values = scratch<int8_t>(Scratch::HiddenQ80, size_t(pairs) * w.down.groups * kGroup);
    p.q.scales = scratch<float>(Scratch::HiddenScales, size_t(pairs) * w.down.groups * 4);
    for (int m = 0; m < 2; m++) {
        p.dataStride[m] = w.dataStride[m];
        p.scaleStride[m] = w.scaleStride[m];
    }
    // Room for the second product as well, so that the first one's scratch stays where it is.
    scratch<__half>(Scratch::Staged, size_t(pairs) * std::max(w.down.groups, w.gate.groups) * kGroup);
    scratch<float>(Scratch::RowScale, pairs);
    stage(step.nTokens, rowsOf(in).q, p);
    launchProduct(p);

    const QuantRows hidden = p.q;
    p.w = w.down;
    p.up = {};
    p.q = {};
    p.rowIndex = nullptr;
    p.dataStride[0] = w.dataStride[2];
    p.scaleStride[0] = w.scaleStride[2];
    p.out = scratch<float>(Scratch::ExpertOut, size_t(pairs) * w.down.rows);
    p.outCols = w.down.rows;
    stage(pairs, hidden, p);
    launchProduct(p);
    launchMixExperts({step.nTokens, routing.topK, w.down.rows, rowOf, routing.weights, p.out, out.f32}, stream_);
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

std::vector<std::string> cudaDevices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return {};
    }
    std::vector<std::string> lines;
    for (int i = 0; i < count; i++) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, i), "device properties");
        lines.push_back(fmt::format("{}, {:.1f} GiB, compute capability {}.{}", properties.name,
                                    static_cast<double>(properties.totalGlobalMem) / (1 << 30), properties.major,
                                    properties.minor));
    }
    return lines;
}

size_t cudaFreeMemory(int gpuIndex) {
    check(cudaSetDevice(gpuIndex), "cudaSetDevice");
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "free GPU memory");
    return free;
}

double cudaMemoryBandwidth(int gpuIndex) {
    int kilohertz = 0, bits = 0;
    check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, gpuIndex), "memory clock");
    check(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, gpuIndex), "memory width");
    return 2.0 * 1e3 * kilohertz * bits / 8;  // both edges of the clock
}

}  // namespace dllama
