#include "arch/architecture.hpp"
#include "base/errors.hpp"

namespace dllama {

namespace {

class Declarer {
  public:
    explicit Declarer(const Architecture& arch) : arch_(arch), c_(arch.config) {}

    std::vector<TensorDecl> all() {
        matrix("token_embedding.weight", c_.vocabSize, c_.hiddenSize, Cut::RootOnly);
        for (layer_ = 0; layer_ < c_.nLayers; layer_++) {
            prefix_ = fmt::format("layers.{}.", layer_);
            attention();
            if (arch_.isMoeLayer(layer_))
                moe();
            else
                mlp("ffn.", c_.intermediateSize, arch_.linearBias);
            if (arch_.postNorms) vector("post_ffn_norm.weight", c_.hiddenSize);
        }
        layer_ = -1;
        prefix_.clear();
        norm("final_norm");
        if (!c_.tieEmbeddings) matrix("head.weight", c_.vocabSize, c_.hiddenSize, Cut::Vocabulary);
        return std::move(list_);
    }

  private:
    void matrix(const std::string& name, int64_t rows, int64_t cols, Cut cut) {
        list_.push_back({prefix_ + name, rows, cols, true, cut, layer_, expert_});
    }
    void vector(const std::string& name, int64_t n, Cut cut = Cut::Replicated) {
        list_.push_back({prefix_ + name, 1, n, false, cut, layer_, expert_});
    }
    void norm(const std::string& name) {
        vector(name + ".weight", c_.hiddenSize);
        if (arch_.norm == Norm::Kind::Layer) vector(name + ".bias", c_.hiddenSize);
    }

    void attention() {
        norm("attn_norm");
        const auto projection = [&](const char* name, int64_t rows, Cut cut) {
            matrix(fmt::format("attn.{}.weight", name), rows, c_.hiddenSize, cut);
            if (arch_.qkvBias) vector(fmt::format("attn.{}.bias", name), rows, cut);
        };
        projection("q", c_.qDim(), Cut::QueryHeads);
        projection("k", c_.kvDim(), Cut::KvHeads);
        projection("v", c_.kvDim(), Cut::KvHeads);
        if (arch_.qkNorm) {
            vector("attn.q_norm.weight", c_.headDim);
            vector("attn.k_norm.weight", c_.headDim);
        }
        matrix("attn.o.weight", c_.hiddenSize, c_.qDim(), Cut::HeadColumns);
        if (arch_.linearBias) vector("attn.o.bias", c_.hiddenSize, Cut::HeadSum);
        if (arch_.postNorms) vector("post_attn_norm.weight", c_.hiddenSize);
        norm("ffn_norm");
    }

    void mlp(const std::string& name, int64_t width, bool bias) {
        if (arch_.gatedFfn) matrix(name + "gate.weight", width, c_.hiddenSize, Cut::FfnRows);
        matrix(name + "up.weight", width, c_.hiddenSize, Cut::FfnRows);
        if (bias) vector(name + "up.bias", width, Cut::FfnRows);
        matrix(name + "down.weight", c_.hiddenSize, width, Cut::FfnColumns);
        if (bias) vector(name + "down.bias", c_.hiddenSize, Cut::FfnSum);
    }

    void moe() {
        list_.push_back(
            {prefix_ + "moe.router.weight", c_.nRoutedExperts, c_.hiddenSize, false, Cut::Replicated, layer_});
        if (arch_.routerBias) vector("moe.router.bias", c_.nRoutedExperts);
        for (expert_ = 0; expert_ < c_.nRoutedExperts; expert_++)
            mlp(fmt::format("moe.experts.{}.", expert_), c_.moeIntermediateSize, false);
        expert_ = -1;
        if (c_.nSharedExperts > 0) mlp("moe.shared.", c_.nSharedExperts * c_.moeIntermediateSize, false);
    }

    const Architecture& arch_;
    const ModelConfig& c_;
    std::vector<TensorDecl> list_;
    std::string prefix_;
    int layer_ = -1;
    int expert_ = -1;
};

}  // namespace

std::vector<TensorDecl> declareTensors(const Architecture& arch) {
    return Declarer(arch).all();
}

void checkTensors(const Architecture& arch, const TensorSource& source, const std::string& origin) {
    for (const TensorDecl& decl : declareTensors(arch)) {
        if (!source.has(decl.name)) throw FormatError("{}: there is no tensor {}", origin, decl.name);
        const TensorInfo& info = source.info(decl.name);
        if (info.rows != decl.rows || info.cols != decl.cols)
            throw FormatError("{}: tensor {} is {} x {}, the configuration asks for {} x {}", origin, decl.name,
                              info.rows, info.cols, decl.rows, decl.cols);
        if (!decl.isWeight && info.dtype != DType::F32)
            throw FormatError("{}: tensor {} is {}, must be F32", origin, decl.name, dtypeName(info.dtype));
    }
}

}  // namespace dllama
