#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/activation.hpp"
#include "backend/batch.hpp"
#include "format/tensor-source.hpp"
#include "tensor/dtype.hpp"

/// The operations a device must offer. The forward pass (src/model) is written once over this interface;
/// reference-backend.hpp computes each of them in the plainest way, and every other backend must agree with it.
///
/// Unless stated otherwise the first `step.nTokens` rows of each buffer take part. Operations may be asynchronous: the
/// order of calls is the order of effects, and download() waits. They neither allocate nor throw, except CudaError.
namespace dllama {

/// Memory on the device that frees itself.
using DeviceMemory = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

/// A buffer for activations: up to maxRows rows of cols values. Quantised matrices read activations as Q80 (a block of
/// 32 bytes with one scale); an operation that writes a buffer made with `quantized` writes that form too, in a layout
/// of the backend's own.
struct Activations {
    int maxRows = 0;
    int cols = 0;
    float* f32 = nullptr;  // (maxRows, cols)
    void* q80 = nullptr;   // null unless made with `quantized`
    DeviceMemory memory;
};

/// f32 values on the device: norm weights, tables.
struct Vector {
    int64_t size = 0;
    float* data = nullptr;
    DeviceMemory memory;
};

/// A weight matrix (rows = outputs, cols = inputs) with an optional bias, in the layout its backend likes best.
class Matrix {
  public:
    virtual ~Matrix() = default;
    DType dtype = DType::F32;
    int64_t rows = 0;
    int64_t cols = 0;
    /// Device memory it takes; 0 where it is used in place.
    size_t deviceBytes = 0;
};

/// What a matrix is made of: slices stacked by rows (q, k and v of a layer, say), of one dtype and width.
struct MatrixSpec {
    std::vector<TensorSlice> weights;
    /// Empty, or slices of vectors that together have as many values as the matrix has rows.
    std::vector<TensorSlice> biases;
};

/// The routed experts of one layer. An expert that another rank owns has an empty spec and adds nothing.
struct ExpertSpec {
    MatrixSpec gate, up, down;
};
class ExpertSet {
  public:
    virtual ~ExpertSet() = default;
    int nExperts = 0;
    size_t deviceBytes = 0;
};

/// out = weight * (x - mean) / sqrt(variance + eps) + bias, or for Rms out = weight * x / sqrt(mean(x^2) + eps).
struct Norm {
    enum class Kind { Rms, Layer };
    Kind kind = Kind::Rms;
    float eps = 1e-5f;
    Vector weight;
    Vector bias;  // Layer only
};

/// How q and k are rotated. Part p of a head is its values [p * rotaryDim, (p + 1) * rotaryDim), turned by the angles
/// of ropePositions row p; the rest of the head passes through. Interleaved turns the pairs (2j, 2j+1), HalfSplit the
/// pairs (j, j + rotaryDim / 2).
struct Rope {
    enum class Style { Interleaved, HalfSplit };
    Style style = Style::HalfSplit;
    int parts = 1;      // 2: 2D RoPE of the original GLM
    int rotaryDim = 0;  // values of each part that are rotated
    Vector cos, sin;    // (positions, rotaryDim / 2), made in double on the host
};

/// The attention heads of this rank. The local query head h reads the local KV head (h + headOffset) / group: a rank's
/// heads may begin in the middle of a group.
struct AttentionShape {
    int nHeads = 0;
    int nKvHeads = 0;
    int headDim = 0;
    int group = 1;
    int headOffset = 0;
    int qkvCols() const { return (nHeads + 2 * nKvHeads) * headDim; }
};

/// The paged KV cache of one layer on this rank: k and v are (nBlocks, nKvHeads, kKvBlockPositions, headDim) in dtype.
/// A latent cache has one head and no v: a value is the first part of its key.
struct KvLayer {
    DType dtype = DType::F16;  // F16 or F32
    int nBlocks = 0;
    int nKvHeads = 0;
    int headDim = 0;
    void* k = nullptr;
    void* v = nullptr;
    DeviceMemory memory;
};

/// Chooses experts for each token. With s = sigmoid(W x) or softmax(W x), in f32: the topK experts of largest
/// s + bias among the topGroups of nGroups groups (a group's rank is the sum of its two best s + bias; one group: no
/// restriction) take part with weight s, divided by (their sum + 1e-20) if `normalize`, times `scale`. Of equal
/// scores the lower index wins. (transformers, modeling_glm4_moe)
struct Router {
    enum class Score { Softmax, Sigmoid };
    Score score = Score::Sigmoid;
    int nExperts = 0;
    int topK = 0;
    int nGroups = 1;
    int topGroups = 1;
    bool normalize = true;
    float scale = 1.0f;
    Vector weight;  // (nExperts, dim)
    Vector bias;    // (nExperts), or none
};

/// The chosen experts: (maxRows, topK) each.
struct Routing {
    int topK = 0;
    int32_t* experts = nullptr;
    float* weights = nullptr;
    DeviceMemory memory;
};

/// A layer of routed experts beside an FFN that every token passes through. Null pointers: not on this rank.
struct MoeOp {
    const Router* router = nullptr;
    const ExpertSet* experts = nullptr;
    const Matrix *gate = nullptr, *up = nullptr, *down = nullptr;  // the shared experts'
};

/// x = base; x += post(y); out = next(x). Every pointer but x may be null: without `scaledBase` x keeps its value, else
/// x = alpha * scaledBase; without `post` y is added as it is. `out` and `next` go together; `out` may be `scaledBase`.
struct AddNorm {
    Activations* x = nullptr;
    const Activations* y = nullptr;
    const Norm* post = nullptr;
    const Activations* scaledBase = nullptr;
    float alpha = 1.0f;
    const Norm* next = nullptr;
    Activations* out = nullptr;
};

class LatentOps;

/// model/tracing.hpp holds a backend that passes all this on: what is added here is added there.
class Backend {
  public:
    virtual ~Backend() = default;

    /// "cpu (avx2, 8 threads)", "cuda:0 (NVIDIA GeForce RTX 3060)".
    virtual std::string name() const = 0;
    /// True if what it computes lies in host memory, so that download() is a mere copy.
    virtual bool isHost() const { return true; }
    /// Multi-head latent attention (latent-ops.hpp); null: this backend does not compute it.
    virtual LatentOps* latentOps() { return nullptr; }

    // Memory. What these return lives no longer than the backend.
    virtual Activations allocateActivations(int maxRows, int cols, bool quantized) = 0;
    KvLayer allocateKvLayer(DType dtype, int nBlocks, int nKvHeads, int headDim);
    KvLayer allocateLatentLayer(DType dtype, int nBlocks, int rowDim);
    Routing allocateRouting(int maxRows, int topK);
    /// Rows first, first + 1, ... of a buffer as a buffer; it lives no longer than `a`. Only for backends in host
    /// memory: this one serves those without a Q80 form.
    virtual Activations rowsFrom(const Activations& a, int first) const {
        return {a.maxRows - first, a.cols, a.f32 + static_cast<size_t>(first) * a.cols, nullptr, nullptr};
    }
    virtual Vector uploadVector(const float* values, int64_t n) = 0;

    // Weights. Thread-safe: the loader calls them from many threads, one tensor group each. The source must outlive
    // what is made from it.
    virtual Vector loadVector(const TensorSource& source, const TensorSlice& slice) = 0;
    virtual std::unique_ptr<Matrix> loadMatrix(const TensorSource& source, const MatrixSpec& spec) = 0;
    virtual std::unique_ptr<ExpertSet> loadExperts(const TensorSource& source,
                                                   const std::vector<ExpertSpec>& specs) = 0;

    /// Runs one step. `shape` names what body() does (equal shape: the same calls on the same buffers, only the
    /// uploaded inputs differ), so that a backend may record it once and replay it.
    virtual void run(const std::string& shape, const std::function<void()>& body) = 0;
    /// Brings a batch to the device. `batch` must stay unchanged until the step has been downloaded.
    virtual const StepInputs& upload(const Batch& batch) = 0;
    /// Waits and copies the first `rows` rows to dst (rows, cols).
    virtual void download(const Activations& from, int rows, float* dst) = 0;
    /// Copies (rows, cols) values from host memory into the buffer's f32 form.
    virtual void uploadActivations(const float* src, int rows, Activations& to) = 0;

    /// The first nTokens rows of x become zero.
    virtual void clear(const StepInputs& step, Activations& x) = 0;
    /// x = the batch's embedding rows as f32.
    virtual void embed(const StepInputs& step, Activations& x) = 0;
    /// Residual addition and norm. Bit-identical on every backend of the same kind of machine and on every CPU: sums
    /// run over pieces of 256 values. A piece's value i belongs to lane i % 32; a lane adds its values of a piece in
    /// order, then its sums of the pieces in order, and the lanes are added pairwise (16 + 16, 8 + 8, ... 1 + 1),
    /// without fused multiply-add, so that all ranks of a cluster keep the same residual and choose the same experts.
    virtual void addNorm(const StepInputs& step, const AddNorm& op) = 0;
    /// out = W in + bias, or out += W in + bias. (nTokens, rows)
    virtual void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                        bool accumulate = false) = 0;
    /// out = act(gate in) * (up in), or act(up in + bias) without a gate.
    virtual void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up,
                       Activation act, Activations& out) = 0;
    /// qkv is (nTokens, q | k | v). Normalises each head of q and k (if the norms are given; weight of headDim values),
    /// rotates q in place, and stores rotated k and v in the cache at the tokens' positions.
    virtual void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                           const Norm* qNorm, const Norm* kNorm, KvLayer& kv) = 0;
    /// out = softmax(q K^T / sqrt(headDim)) V over the first `contextLength` cached positions. (nTokens, nHeads *
    /// headDim)
    virtual void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape,
                           const KvLayer& kv, Activations& out) = 0;
    /// ropeStore() and then attention(). What qkv holds afterwards is the backend's business, which may do better than
    /// one operation after the other.
    virtual void attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                        const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) {
        ropeStore(step, qkv, shape, rope, qNorm, kNorm, kv);
        attention(step, qkv, shape, kv, out);
    }
    /// Router logits in the summation order of addNorm.
    virtual void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) = 0;
    /// out += sum over a token's experts of weight * down(silu(gate in) * (up in)).
    virtual void experts(const StepInputs& step, const Activations& in, const Routing& routing,
                         const ExpertSet& experts, Activations& out) = 0;
    /// out = the shared experts' FFN (with silu) of `in` + the chosen experts'. `hidden` (of the shared FFN) and
    /// `routing` are scratch. A backend may do better than one operation after the other.
    virtual void moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden,
                     Routing& routing, Activations& out) {
        if (m.up) {
            ffnUp(step, in, m.gate, *m.up, Activation::Silu, hidden);
            linear(step, hidden, *m.down, out);
        } else {
            clear(step, out);
        }
        if (!m.experts) return;
        route(step, in, *m.router, routing);
        experts(step, in, routing, *m.experts, out);
    }
    /// out row i = x row outputRows[i], for nOutputs rows.
    virtual void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) = 0;
    /// logits = W in for nOutputs rows. (nOutputs, rows)
    virtual void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) = 0;
    /// What a sampler needs of each of the nOutputs rows of logits. Row i of `out` (nOutputs, topLogitsCols(k)) is
    ///     the largest logit, the sum over the row of exp((logit - largest) / temperature),
    ///     the k best logits from the best down (of equal ones the lower token first), and
    ///     their tokens, firstToken + column, as floats.
    /// The sum has no meaning where the temperature (step.outputTemperatures) is 0. A row of fewer than k values is
    /// filled up with -infinity and token -1. A row with a value that is not a number has one as its largest.
    virtual void topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k,
                           Activations& out) = 0;

    /// A hint: of all weights this matrix (and `beside`, if ffnUp() will read two at once) is read next, behind an
    /// all-reduce of the ranks. A backend may bring its beginning nearer meanwhile; results do not change.
    virtual void prefetch(const Matrix& /*next*/, const Matrix* /*beside*/ = nullptr) {}
    /// For whoever waits for other ranks: lets the backend's other threads begin with what prefetch() named, and does a
    /// microsecond's worth of it in this one. False when nothing is left to do here.
    virtual bool prefetchPiece() { return false; }
    /// Ends that work. Must follow before the matrices that were named are gone.
    virtual void endPrefetch() {}

    /// What is called until endRange() has this name in the device's profiler. Ranges may be nested.
    virtual void beginRange(const char* /*name*/) {}
    /// Ends the last range when the device has done what it holds. Not in a step that is recorded. Does not throw.
    virtual void endRange() {}

    /// Device memory, aligned to 64 bytes or more.
    virtual DeviceMemory allocate(size_t bytes) = 0;
};

/// The most that topLogits() is asked for.
constexpr int kMaxTopLogits = 64;
constexpr int topLogitsCols(int k) {
    return 2 + 2 * k;
}

}  // namespace dllama
