#include "model/weights.hpp"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "base/errors.hpp"

namespace dllama {

namespace {

size_t sliceBytes(const TensorSource& source, const TensorSlice& slice) {
    return static_cast<size_t>(slice.rows()) * storedBytes(source.info(slice.name).dtype, slice.cols());
}

/// Collects one job per tensor group, so that many threads can load at once; each job fills one field of Weights.
class Loader {
  public:
    Loader(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source, Backend& backend)
        : arch_(arch), plan_(plan), rank_(rank), source_(source), backend_(backend) {
        for (TensorDecl& decl : computedTensors(arch)) {
            if (decl.part == Part::Head) head_ = decl.name;
            std::string name = decl.name;
            decls_.emplace(std::move(name), std::move(decl));
        }
    }

    RankWeights load(ThreadPool& pool, const LoadProgress& progress) {
        RankWeights weights;
        weights.layers.resize(arch_.config.nLayers);
        for (int i = 0; i < arch_.config.nLayers; i++) layer(i, weights.layers[i]);
        norm("final_norm", weights.finalNorm);
        head(weights.head);

        size_t total = 0, done = 0;
        for (const Job& job : jobs_) total += job.bytes;
        std::mutex mutex;
        pool.parallelFor(static_cast<int64_t>(jobs_.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                jobs_[i].run();
                const std::lock_guard lock(mutex);
                done += jobs_[i].bytes;
                if (progress) progress(done, total);
            }
        });
        return weights;
    }

  private:
    struct Job {
        size_t bytes;
        std::function<void()> run;
    };

    std::optional<TensorSlice> slice(const std::string& name) const { return plan_.slice(decls_.at(name), rank_); }

    /// The slices of `names` (without ".weight") stacked; nothing if this rank has no share.
    MatrixSpec spec(const std::vector<std::string>& names) const {
        MatrixSpec spec;
        for (const std::string& name : names) {
            if (auto weight = slice(name + ".weight")) spec.weights.push_back(*weight);
            if (!decls_.contains(name + ".bias")) continue;
            if (auto bias = slice(name + ".bias")) spec.biases.push_back(*bias);
        }
        return spec;
    }

    size_t bytes(const MatrixSpec& spec) const {
        size_t sum = 0;
        for (const auto* list : {&spec.weights, &spec.biases})
            for (const TensorSlice& slice : *list) sum += sliceBytes(source_, slice);
        return sum;
    }

    void matrix(const std::vector<std::string>& names, std::unique_ptr<Matrix>& target) { load(spec(names), target); }

    void head(std::unique_ptr<Matrix>& target) {
        MatrixSpec parts;
        if (auto rows = slice(head_)) parts.weights.push_back(*rows);
        load(parts, target);
    }

    void load(const MatrixSpec& parts, std::unique_ptr<Matrix>& target) {
        if (parts.weights.empty()) return;
        jobs_.push_back({bytes(parts), [this, parts, &target] { target = backend_.loadMatrix(source_, parts); }});
    }

    void vector(const std::string& name, Vector& target) {
        const TensorSlice whole = source_.whole(name);
        jobs_.push_back(
            {sliceBytes(source_, whole), [this, whole, &target] { target = backend_.loadVector(source_, whole); }});
    }

    void norm(const std::string& name, Norm& target, Norm::Kind kind) {
        target.kind = kind;
        target.eps = static_cast<float>(arch_.config.normEps);
        vector(name + ".weight", target.weight);
        if (kind == Norm::Kind::Layer) vector(name + ".bias", target.bias);
    }
    void norm(const std::string& name, Norm& target) { norm(name, target, arch_.norm); }

    void ffn(const std::string& prefix, FfnWeights& target) {
        if (arch_.gatedFfn) matrix({prefix + "gate"}, target.gate);
        matrix({prefix + "up"}, target.up);
        matrix({prefix + "down"}, target.down);
    }

    void layer(int index, LayerWeights& w) {
        const std::string prefix = fmt::format("layers.{}.", index);
        norm(prefix + "attn_norm", w.attnNorm);
        if (arch_.config.isLatent())
            latent(prefix + "attn.", w);
        else
            matrix({prefix + "attn.q", prefix + "attn.k", prefix + "attn.v"}, w.qkv);
        if (arch_.qkNorm) {
            norm(prefix + "attn.q_norm", w.qNorm.emplace(), Norm::Kind::Rms);
            norm(prefix + "attn.k_norm", w.kNorm.emplace(), Norm::Kind::Rms);
        }
        matrix({prefix + "attn.o"}, w.o);
        if (arch_.postNorms) norm(prefix + "post_attn_norm", w.postAttnNorm.emplace());
        norm(prefix + "ffn_norm", w.ffnNorm);
        if (arch_.isMoeLayer(index))
            moe(prefix + "moe.", w.moe.emplace());
        else
            ffn(prefix + "ffn.", w.ffn);
        if (arch_.postNorms) norm(prefix + "post_ffn_norm", w.postFfnNorm.emplace());
    }

    void latent(const std::string& prefix, LayerWeights& w) {
        if (plan_.share(rank_).heads.size() == 0) return;
        LatentWeights& target = w.latent.emplace();
        const bool queryLatent = arch_.config.qLoraRank > 0;
        matrix({prefix + (queryLatent ? "q_a" : "q"), prefix + "kv_a"}, w.qkv);
        if (queryLatent) {
            norm(prefix + "q_a_norm", target.queryNorm.emplace(), Norm::Kind::Rms);
            matrix({prefix + "q_b"}, target.qB);
        }
        norm(prefix + "kv_a_norm", target.norm, Norm::Kind::Rms);
        matrix({prefix + "k_b"}, target.kB);
        matrix({prefix + "v_b"}, target.vB);
    }

    void moe(const std::string& prefix, MoeWeights& w) {
        const ModelConfig& c = arch_.config;
        w.router.score = c.scoringFunc == "sigmoid" ? Router::Score::Sigmoid : Router::Score::Softmax;
        w.router.nExperts = c.nRoutedExperts;
        w.router.topK = c.nExpertsPerToken;
        w.router.nGroups = c.nGroups;
        w.router.topGroups = c.topkGroups;
        w.router.normalize = c.normTopkProb;
        w.router.scale = static_cast<float>(c.routedScalingFactor);
        vector(prefix + "router.weight", w.router.weight);
        if (arch_.routerBias) vector(prefix + "router.bias", w.router.bias);
        if (c.nSharedExperts > 0) ffn(prefix + "shared.", w.shared);

        std::vector<ExpertSpec> specs(c.nRoutedExperts);
        size_t size = 0;
        for (int e = 0; e < c.nRoutedExperts; e++) {
            const std::string name = fmt::format("{}experts.{}.", prefix, e);
            specs[e] = {spec({name + "gate"}), spec({name + "up"}), spec({name + "down"})};
            size += bytes(specs[e].gate) + bytes(specs[e].up) + bytes(specs[e].down);
        }
        if (size == 0) return;
        jobs_.push_back({size, [this, specs, &w] { w.experts = backend_.loadExperts(source_, specs); }});
    }

    const Architecture& arch_;
    const ShardPlan& plan_;
    const int rank_;
    const TensorSource& source_;
    Backend& backend_;
    std::unordered_map<std::string, TensorDecl> decls_;
    std::string head_;  // the tensor that the head is made of
    std::vector<Job> jobs_;
};

}  // namespace

RankWeights loadWeights(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source,
                        Backend& backend, ThreadPool& pool, const LoadProgress& progress) {
    if (arch.config.isLatent() && !backend.latentOps())
        throw ConfigError("{}: {} runs on the CPU in this version: start with --device cpu", backend.name(),
                          arch.config.architecture);
    return Loader(arch, plan, rank, source, backend).load(pool, progress);
}

size_t storedWeightBytes(const Architecture& arch, const ShardPlan& plan, int rank, const TensorSource& source) {
    size_t sum = 0;
    for (const TensorDecl& decl : computedTensors(arch)) {
        if (const auto slice = plan.slice(decl, rank)) sum += sliceBytes(source, *slice);
    }
    return sum;
}

}  // namespace dllama
