#pragma once

#include <optional>
#include <string>

#include "backend/backend.hpp"
#include "backend/latent-ops.hpp"
#include "base/trace.hpp"
#include "parallel/communicator.hpp"

namespace dllama {

/// Where the events of a rank go. They end when the device has done what they hold, so that their times are the
/// device's.
struct Tracer {
    Trace& trace;
    Backend& backend;
    int rank;
};

/// An event from here to the end of the scope; without a tracer nothing.
class TraceSpan {
  public:
    /// `number`, if it is not below 0, is a part of the name: "layer 3". The texts must outlive the span.
    TraceSpan(const Tracer* tracer, const char* category, const char* name, int number = -1, Trace::Argument a = {},
              Trace::Argument b = {});
    TraceSpan(const TraceSpan&) = delete;
    TraceSpan& operator=(const TraceSpan&) = delete;
    ~TraceSpan();

  private:
    const Tracer* tracer_;
    const char* category_;
    std::string name_;
    Trace::Argument a_, b_;
    Trace::Clock::time_point begin_;
};

/// Another's latent attention whose operations become events.
class TracingLatentOps final : public LatentOps {
  public:
    TracingLatentOps(LatentOps& inner, const Tracer& tracer) : inner_(inner), tracer_(tracer) {}

    void normRows(const StepInputs& step, const Activations& in, const Norm& norm, Activations& out) override;
    void storeLatent(const StepInputs& step, const Activations& in, const LatentShape& shape, const Rope& rope,
                     const Norm& norm, KvLayer& kv) override;
    void splitQueries(const StepInputs& step, const Activations& q, const LatentShape& shape, const Rope& rope,
                      Activations& plain, Activations& queries) override;
    void linearPerHead(const StepInputs& step, const Activations& in, const Matrix& w, int nHeads,
                       Activations& out) override;
    void attend(const StepInputs& step, const Activations& queries, const LatentShape& shape, const KvLayer& kv,
                Activations& out) override;

  private:
    LatentOps& inner_;
    const Tracer tracer_;
};

/// Another backend whose operations become events.
class TracingBackend final : public Backend {
  public:
    explicit TracingBackend(const Tracer& tracer) : inner_(tracer.backend), tracer_(tracer) {
        if (LatentOps* ops = inner_.latentOps()) latentOps_.emplace(*ops, tracer);
    }

    std::string name() const override { return inner_.name(); }
    bool isHost() const override { return inner_.isHost(); }
    LatentOps* latentOps() override { return latentOps_ ? &*latentOps_ : nullptr; }
    Activations allocateActivations(int maxRows, int cols, bool quantized) override {
        return inner_.allocateActivations(maxRows, cols, quantized);
    }
    DeviceMemory allocate(size_t bytes) override { return inner_.allocate(bytes); }
    Activations rowsFrom(const Activations& a, int first) const override { return inner_.rowsFrom(a, first); }
    Vector uploadVector(const float* values, int64_t n) override { return inner_.uploadVector(values, n); }
    Vector loadVector(const TensorSource& source, const TensorSlice& slice) override {
        return inner_.loadVector(source, slice);
    }
    std::unique_ptr<Matrix> loadMatrix(const TensorSource& source, const MatrixSpec& spec) override {
        return inner_.loadMatrix(source, spec);
    }
    std::unique_ptr<ExpertSet> loadExperts(const TensorSource& source, const std::vector<ExpertSpec>& specs) override {
        return inner_.loadExperts(source, specs);
    }
    void run(const std::string& shape, const std::function<void()>& body) override;
    const StepInputs& upload(const Batch& batch) override;
    void download(const Activations& from, int rows, float* dst) override;
    void uploadActivations(const float* src, int rows, Activations& to) override;
    void clear(const StepInputs& step, Activations& x) override;
    void embed(const StepInputs& step, Activations& x) override;
    void addNorm(const StepInputs& step, const AddNorm& op) override;
    void linear(const StepInputs& step, const Activations& in, const Matrix& w, Activations& out,
                bool accumulate) override;
    void ffnUp(const StepInputs& step, const Activations& in, const Matrix* gate, const Matrix& up, Activation act,
               Activations& out) override;
    void ropeStore(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                   const Norm* qNorm, const Norm* kNorm, KvLayer& kv) override;
    void attention(const StepInputs& step, const Activations& qkv, const AttentionShape& shape, const KvLayer& kv,
                   Activations& out) override;
    void attend(const StepInputs& step, Activations& qkv, const AttentionShape& shape, const Rope& rope,
                const Norm* qNorm, const Norm* kNorm, KvLayer& kv, Activations& out) override;
    void route(const StepInputs& step, const Activations& in, const Router& router, Routing& routing) override;
    void experts(const StepInputs& step, const Activations& in, const Routing& routing, const ExpertSet& experts,
                 Activations& out) override;
    void moe(const StepInputs& step, const Activations& in, const MoeOp& m, Activations& hidden, Routing& routing,
             Activations& out) override;
    void gatherOutputs(const StepInputs& step, const Activations& x, Activations& out) override;
    void head(const StepInputs& step, const Activations& in, const Matrix& w, Activations& logits) override;
    void topLogits(const StepInputs& step, const Activations& logits, int firstToken, int k, Activations& out) override;
    void prefetch(const Matrix& next, const Matrix* beside) override { inner_.prefetch(next, beside); }
    bool prefetchPiece() override { return inner_.prefetchPiece(); }
    void endPrefetch() override { inner_.endPrefetch(); }

  private:
    Backend& inner_;
    const Tracer tracer_;
    std::optional<TracingLatentOps> latentOps_;
    uint64_t nRuns_ = 0;
};

/// Another communicator whose collectives become events. One that overlaps with other work has a lane of its own.
class TracingCommunicator final : public Communicator {
  public:
    TracingCommunicator(Communicator& inner, const Tracer& tracer) : inner_(inner), tracer_(tracer) {}

    int rank() const override { return inner_.rank(); }
    int nRanks() const override { return inner_.nRanks(); }
    void allReduce(const StepInputs& step, Activations& x) override;
    bool overlaps() const override { return inner_.overlaps(); }
    void startAllReduce(const StepInputs& step, Activations& x) override;
    void waitAllReduce(const StepInputs& step, Activations& x) override;
    void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) override;

  private:
    Communicator& inner_;
    const Tracer tracer_;
    Trace::Clock::time_point started_;
};

}  // namespace dllama
