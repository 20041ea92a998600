#include <functional>
#include <unordered_map>

#include "arch/architecture.hpp"
#include "base/errors.hpp"

namespace dllama {

namespace {

using Sink = std::function<void(TensorDecl&&)>;

/// Tells the sink of one tensor after the other.
class Declarer {
  public:
    Declarer(const Architecture& arch, Sink sink) : arch_(arch), c_(arch.config), sink_(std::move(sink)) {}

    void all() {
        part_ = Part::Embedding;
        matrix("token_embedding.weight", c_.vocabSize, c_.hiddenSize, Cut::RootOnly, newGroup());
        for (layer_ = 0; layer_ < c_.nLayers; layer_++) {
            prefix_ = fmt::format("layers.{}.", layer_);
            attention();
            if (arch_.isMoeLayer(layer_))
                moe();
            else
                mlp(Part::DenseFfn, "ffn.", c_.intermediateSize, arch_.linearBias);
            if (arch_.postNorms) postNorm("post_ffn_norm");
        }
        layer_ = -1;
        prefix_.clear();
        norm("final_norm");
        part_ = Part::Head;
        if (!c_.tieEmbeddings) matrix("head.weight", c_.vocabSize, c_.hiddenSize, Cut::Vocabulary, newGroup());
    }

  private:
    int newGroup() { return nGroups_++; }
    void add(const std::string& name, int64_t rows, int64_t cols, Cut cut, bool isWeight, int group) {
        int unit = 1;
        if (cut == Cut::QueryHeads) unit = static_cast<int>((isWeight ? rows : cols) / c_.nHeads);
        if (cut == Cut::KvHeads) unit = c_.headDim;
        if (cut == Cut::HeadColumns) unit = c_.valueDim();
        sink_({.name = prefix_ + name,
               .part = part_,
               .rows = rows,
               .cols = cols,
               .isWeight = isWeight,
               .cut = cut,
               .cutUnit = unit,
               .layer = layer_,
               .expert = expert_,
               .typeGroup = group});
    }
    void matrix(const std::string& name, int64_t rows, int64_t cols, Cut cut, int group) {
        add(name, rows, cols, cut, true, group);
    }
    void vector(const std::string& name, int64_t n, Cut cut = Cut::Replicated) { add(name, 1, n, cut, false, -1); }
    void postNorm(const std::string& name) {
        part_ = Part::Norm;
        vector(name + ".weight", c_.hiddenSize);
    }
    void norm(const std::string& name) {
        part_ = Part::Norm;
        vector(name + ".weight", c_.hiddenSize);
        if (arch_.norm == Norm::Kind::Layer) vector(name + ".bias", c_.hiddenSize);
    }

    void attention() {
        norm("attn_norm");
        part_ = Part::Attention;
        if (c_.isLatent())
            latentProjections();
        else
            groupedProjections();
        matrix("attn.o.weight", c_.hiddenSize, int64_t{c_.nHeads} * c_.valueDim(), Cut::HeadColumns, newGroup());
        if (arch_.linearBias) vector("attn.o.bias", c_.hiddenSize, Cut::HeadSum);
        if (arch_.postNorms) postNorm("post_attn_norm");
        norm("ffn_norm");
    }

    void groupedProjections() {
        const int qkv = newGroup();
        const auto projection = [&](const char* name, int64_t rows, Cut cut) {
            matrix(fmt::format("attn.{}.weight", name), rows, c_.hiddenSize, cut, qkv);
            if (arch_.qkvBias) vector(fmt::format("attn.{}.bias", name), rows, cut);
        };
        projection("q", c_.qDim(), Cut::QueryHeads);
        projection("k", c_.kvDim(), Cut::KvHeads);
        projection("v", c_.kvDim(), Cut::KvHeads);
        if (arch_.qkNorm) {
            vector("attn.q_norm.weight", c_.headDim);
            vector("attn.k_norm.weight", c_.headDim);
        }
    }

    /// Multi-head latent attention. k_b is stored as absorbed attention multiplies with it: each head's part of the
    /// checkpoint's kv_b_proj that makes keys, transposed.
    void latentProjections() {
        const int fromHidden = newGroup();
        const int64_t heads = c_.nHeads;
        if (c_.qLoraRank > 0)
            matrix("attn.q_a.weight", c_.qLoraRank, c_.hiddenSize, Cut::WithHeads, fromHidden);
        else
            matrix("attn.q.weight", c_.qDim(), c_.hiddenSize, Cut::QueryHeads, fromHidden);
        matrix("attn.kv_a.weight", c_.latentDim(), c_.hiddenSize, Cut::WithHeads, fromHidden);
        if (c_.qLoraRank > 0) {
            vector("attn.q_a_norm.weight", c_.qLoraRank, Cut::WithHeads);
            matrix("attn.q_b.weight", c_.qDim(), c_.qLoraRank, Cut::QueryHeads, newGroup());
        }
        vector("attn.kv_a_norm.weight", c_.kvLoraRank, Cut::WithHeads);
        matrix("attn.k_b.weight", heads * c_.kvLoraRank, c_.qkNopeHeadDim, Cut::QueryHeads, newGroup());
        matrix("attn.v_b.weight", heads * c_.vHeadDim, c_.kvLoraRank, Cut::QueryHeads, newGroup());
    }

    void mlp(Part part, const std::string& name, int64_t width, bool bias) {
        mlp(part, name, width, bias, newGroup(), newGroup());
    }
    void mlp(Part part, const std::string& name, int64_t width, bool bias, int gateUp, int down) {
        part_ = part;
        if (arch_.gatedFfn) matrix(name + "gate.weight", width, c_.hiddenSize, Cut::FfnRows, gateUp);
        matrix(name + "up.weight", width, c_.hiddenSize, Cut::FfnRows, gateUp);
        if (bias) vector(name + "up.bias", width, Cut::FfnRows);
        matrix(name + "down.weight", c_.hiddenSize, width, Cut::FfnColumns, down);
        if (bias) vector(name + "down.bias", c_.hiddenSize, Cut::FfnSum);
    }

    void moe() {
        part_ = Part::Router;
        add("moe.router.weight", c_.nRoutedExperts, c_.hiddenSize, Cut::Replicated, false, -1);
        if (arch_.routerBias) vector("moe.router.bias", c_.nRoutedExperts);
        const int gateUp = newGroup(), down = newGroup();
        for (expert_ = 0; expert_ < c_.nRoutedExperts; expert_++)
            mlp(Part::RoutedExpert, fmt::format("moe.experts.{}.", expert_), c_.moeIntermediateSize, false, gateUp,
                down);
        expert_ = -1;
        if (c_.nSharedExperts > 0)
            mlp(Part::SharedExpert, "moe.shared.", c_.nSharedExperts * c_.moeIntermediateSize, false);
    }

    const Architecture& arch_;
    const ModelConfig& c_;
    const Sink sink_;
    int nGroups_ = 0;
    std::string prefix_;
    Part part_ = Part::Embedding;
    int layer_ = -1;
    int expert_ = -1;
};

}  // namespace

std::vector<TensorDecl> declareTensors(const Architecture& arch) {
    std::vector<TensorDecl> list;
    Declarer(arch, [&](TensorDecl&& decl) { list.push_back(std::move(decl)); }).all();
    return list;
}

std::vector<TensorDecl> computedTensors(const Architecture& arch) {
    std::vector<TensorDecl> tensors = declareTensors(arch);
    TensorDecl& table = tensors.front();
    if (!arch.config.tieEmbeddings) {
        tensors.erase(tensors.begin());
    } else {
        table.part = Part::Head;
        table.cut = Cut::Vocabulary;
    }
    return tensors;
}

double activeShare(const ModelConfig& config, const TensorDecl& tensor) {
    if (tensor.part != Part::RoutedExpert) return 1.0;
    return static_cast<double>(config.nExpertsPerToken) / config.nRoutedExperts;
}

void checkTensors(const Architecture& arch, const TensorSource& source, const std::string& origin) {
    std::unordered_map<int, TensorInfo> firstOfGroup;
    // One by one: a configuration may speak of millions of tensors of which the source has none.
    Declarer(arch, [&](TensorDecl&& decl) {
        if (!source.has(decl.name)) throw FormatError("{}: there is no tensor {}", origin, decl.name);
        const TensorInfo& info = source.info(decl.name);
        if (info.rows != decl.rows || info.cols != decl.cols)
            throw FormatError("{}: tensor {} is {} x {}, the configuration asks for {} x {}", origin, decl.name,
                              info.rows, info.cols, decl.rows, decl.cols);
        if (!decl.isWeight && info.dtype != DType::F32)
            throw FormatError("{}: tensor {} is {}, must be F32", origin, decl.name, dtypeName(info.dtype));
        if (info.cols % blockValues(info.dtype) != 0)
            throw FormatError("{}: tensor {}: {} columns are no multiple of {}, the block length of {}", origin,
                              decl.name, info.cols, blockValues(info.dtype), dtypeName(info.dtype));
        if (!decl.isWeight) return;
        const TensorInfo& first = firstOfGroup.try_emplace(decl.typeGroup, info).first->second;
        if (info.dtype != first.dtype)
            throw FormatError("{}: tensor {} is {} and {} is {}: they must be of one type", origin, decl.name,
                              dtypeName(info.dtype), first.name, dtypeName(first.dtype));
    }).all();
}

}  // namespace dllama
