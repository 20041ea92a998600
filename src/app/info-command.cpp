#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/printable.hpp"

namespace dllama {

namespace {

double mebibytes(size_t bytes) {
    return static_cast<double>(bytes) / (1 << 20);
}

}  // namespace

int runInfo(const InfoOptions& options) {
    const ModelPaths paths = findModel(options.model);
    const ModelFile file(paths.model);
    const Architecture arch = makeArchitecture(file.config());
    checkTensors(arch, file, paths.model);
    const ModelConfig& c = file.config();

    const auto valuesOf = [](const TensorDecl& decl) { return static_cast<double>(decl.rows * decl.cols); };
    double values = 0.0, active = 0.0;
    for (const TensorDecl& decl : declareTensors(arch)) values += valuesOf(decl);
    for (const TensorDecl& decl : computedTensors(arch)) active += activeShare(c, decl) * valuesOf(decl);
    fmt::print(
        "file                 {} ({:.1f} MiB, {})\n", paths.model, mebibytes(file.bytes()),
        file.tensorHash("token_embedding.weight") ? "every tensor hashed" : "distributed-llama's form, no hashes");
    fmt::print("model                {}{}\n", c.name.empty() ? "" : printable(c.name) + ", ", c.architecture);
    fmt::print("weights              {}, {} tensors, {:.2f} million values, {:.2f} million used per token\n",
               dtypeName(file.weightType()), file.tensors().size(), values / 1e6, active / 1e6);
    fmt::print("layers               {}, hidden size {}, vocabulary {}\n", c.nLayers, c.hiddenSize, c.vocabSize);
    if (c.isLatent())
        fmt::print("attention            {} heads over one latent of {} + {} a position; context {}\n", c.nHeads,
                   c.kvLoraRank, c.rotaryDim, c.maxPositions);
    else
        fmt::print("attention            {} query heads, {} KV heads of {}; context {}\n", c.nHeads, c.nKvHeads,
                   c.headDim, c.maxPositions);
    if (c.isMoe())
        fmt::print("experts              {} of {}, {} at a time, {} shared; {} dense layers of {}\n", c.nRoutedExperts,
                   c.moeIntermediateSize, c.nExpertsPerToken, c.nSharedExperts, c.firstMoeLayer, c.intermediateSize);
    else
        fmt::print("FFN                  {}\n", c.intermediateSize);
    if (c.nNextnLayers > 0) fmt::print("next-token layers    {} (kept in the file, not used yet)\n", c.nNextnLayers);

    const ShardPlan plan = makeShardPlan(arch, {NodeSpec{}});
    const size_t stored = storedWeightBytes(arch, plan, 0, file);
    const size_t perPosition = Decoder::kvBytesPerPosition(arch, plan.attentionShape(0), DType::F16);
    fmt::print("memory               weights {:.1f} MiB, KV cache {} bytes for one more token of context\n",
               mebibytes(stored), perPosition);
    for (int positions : {2048, 8192, 32768, 131072}) {
        if (positions > 2048 && positions > arch.maxPositions) break;
        const int n = std::min(positions, arch.maxPositions);
        const DecoderLimits limits{.maxTokens = std::min(512, n), .maxOutputs = 1, .maxPositions = n};
        const size_t total = stored + perPosition * n + Decoder::bufferBytes(arch, plan.share(0), limits);
        fmt::print("  context {:>7}    {:.1f} MiB in all\n", n, mebibytes(total));
    }
    if (options.tensors)
        for (const TensorInfo& t : file.tensors())
            fmt::print("  {:<48} {:<5} {} x {}\n", printable(t.name), dtypeName(t.dtype), t.rows, t.cols);
    return 0;
}

}  // namespace dllama
