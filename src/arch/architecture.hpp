#pragma once

#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "format/model-config.hpp"
#include "format/tensor-source.hpp"

namespace dllama {

/// A model family as data: what the forward pass does differently for it. Each family's file (llama.cpp, glm4.cpp, ...)
/// fills one in; src/model reads it and knows no family by name.
struct Architecture {
    ModelConfig config;

    Norm::Kind norm = Norm::Kind::Rms;
    Rope::Style ropeStyle = Rope::Style::HalfSplit;
    /// 2: the first half of a head turns by the position in the prompt, the second by the position in the answer.
    int ropeParts = 1;
    /// q and k of each head are normalised before they are rotated.
    bool qkNorm = false;
    bool qkvBias = false;
    /// Attention output and FFN matrices have biases too.
    bool linearBias = false;
    /// The outputs of attention and FFN are normalised before they are added (sandwich norms).
    bool postNorms = false;
    /// FFN: act(gate x) * (up x), or act(up x).
    bool gatedFfn = true;
    Activation activation = Activation::Silu;
    /// The residual is the normalised input times this, not the input; 0: the ordinary residual.
    float residualAlpha = 0.0f;
    /// Everything before <sop> sees everything before <sop>: such a prompt is computed whole, and its cache is of no
    /// use to a longer prompt.
    bool prefixMask = false;
    /// Learned bias that balances the load of the experts, used for selection only.
    bool routerBias = false;
    /// The largest position that may be used.
    int maxPositions = 0;

    bool isMoeLayer(int layer) const { return config.isMoe() && layer >= config.firstMoeLayer; }
};

/// Throws ConfigError if this program has no such family.
Architecture makeArchitecture(const ModelConfig& config);

/// How a tensor may be cut across ranks (src/parallel decides where).
enum class Cut {
    Replicated,   // every rank has all of it
    RootOnly,     // stays with the root: the embedding table
    QueryHeads,   // rows, whole query heads
    KvHeads,      // rows, whole KV heads; replicated when there are more ranks than heads
    HeadColumns,  // columns, as QueryHeads cuts the rows of q
    WithHeads,    // every rank that has query heads has all of it
    FfnRows,      // rows, in units of 32
    FfnColumns,   // columns, in units of 32
    Vocabulary,   // rows of the output head
    HeadSum,      // bias of a HeadColumns matrix: added once, by the first rank that has heads
    FfnSum,       // bias of an FfnColumns matrix, likewise
};

/// What a tensor is for.
enum class Part { Embedding, Norm, Attention, DenseFfn, Router, RoutedExpert, SharedExpert, Head };

struct TensorDecl {
    std::string name;
    Part part = Part::Norm;
    int64_t rows = 1;
    int64_t cols = 0;
    /// Matrices have the file's weight type; the others are F32.
    bool isWeight = false;
    Cut cut = Cut::Replicated;
    /// Rows or columns that stay together where it is cut: those of a head; 1 where blocks of the type decide.
    int cutUnit = 1;
    /// Layer it belongs to, -1 for embedding, final norm and head; expert within the layer, or -1.
    int layer = -1;
    int expert = -1;
    /// Tensors of one group are stored in one type, since backends compute with them as one matrix: q, k and v; gate
    /// and up; the experts' gates and ups of a layer; their downs.
    int typeGroup = -1;
};

/// Every tensor of the model, in the order of a described file. The next-token layers are not listed.
std::vector<TensorDecl> declareTensors(const Architecture& arch);

/// What the ranks compute with, in the same order: all but the embedding table, whose rows come with each batch. The
/// head of a model with tied embeddings is the table's tensor, cut as a head.
std::vector<TensorDecl> computedTensors(const Architecture& arch);

/// The share of a tensor's values that one token uses: of the routed experts those that are chosen, of others all.
double activeShare(const ModelConfig& config, const TensorDecl& tensor);

/// Throws FormatError unless `source` has each declared tensor in its shape and in a type that its kind may have;
/// `origin` names the source. Takes no more memory than the source's own tensors do, whatever the configuration says.
void checkTensors(const Architecture& arch, const TensorSource& source, const std::string& origin);

/// cos and sin of every position's angles, (nPositions, rotaryDim / 2), where each of ropeParts rotates rotaryDim
/// values; computed in double.
struct RopeTables {
    int rotaryDim = 0;
    std::vector<float> cos, sin;
};
RopeTables makeRopeTables(const Architecture& arch, int nPositions);

}  // namespace dllama
