#include "app/session.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "app/cluster-flags.hpp"
#include "app/progress-bar.hpp"
#include "base/errors.hpp"
#include "base/printable.hpp"
#include "base/system-info.hpp"
#include "cluster/memory-plan.hpp"

namespace dllama {

namespace fs = std::filesystem;

namespace {

constexpr int kDefaultMaxSeqLen = 8192;
constexpr int kMaxThreads = 512;

std::string demoFile(const char* name) {
    const std::string program = programDirectory();
    for (const std::string& folder : {program + "/models/demo", program + "/../share/dllama/demo"}) {
        const std::string path = folder + "/" + name;
        if (fs::exists(path)) return path;
    }
    return {};
}

/// F32 weights are there to be compared with a reference: their cache is F32 as well.
DType kvType(const std::string& name, DType weightType) {
    if (name == "auto") return weightType == DType::F32 ? DType::F32 : DType::F16;
    if (name == "f16") return DType::F16;
    if (name == "f32") return DType::F32;
    throw ConfigError("--kv-type {} is not known (auto, f16, f32)", name);
}

}  // namespace

int checkedThreads(int requested) {
    if (requested < 0 || requested > kMaxThreads)
        throw ConfigError("--nthreads is {}, must be from 1 to {}", requested, kMaxThreads);
    return requested > 0 ? requested : usableCores();
}

std::string findTokenizer(const std::string& path) {
    if (!path.empty()) return path;
    const std::string demo = demoFile("demo.t");
    if (demo.empty()) throw ConfigError("--tokenizer is required: there is no demo model beside the program");
    return demo;
}

Tokenizer loadTokenizer(const std::string& path) {
    TokenizerFile file = readTokenizerFile(path);
    try {
        return Tokenizer(std::move(file));
    } catch (const FormatError& error) {
        throw FormatError("{}: {}", path, error.what());
    }
}

ModelPaths findModel(const ModelOptions& options) {
    if (options.model.empty()) {
        const std::string demo = demoFile("demo-q40.m");
        if (demo.empty()) throw ConfigError("--model is required: there is no demo model beside the program");
        return {demo, options.tokenizer.empty() ? findTokenizer("") : options.tokenizer, true};
    }
    if (!options.tokenizer.empty()) return {options.model, options.tokenizer, false};
    // One tokenizer in the model's folder needs no name.
    std::vector<std::string> found;
    std::error_code error;
    const fs::path folder = fs::path(options.model).parent_path();
    for (const auto& entry : fs::directory_iterator(folder.empty() ? "." : folder, error))
        if (entry.path().extension() == ".t") found.push_back(entry.path().string());
    return {options.model, found.size() == 1 ? found[0] : "", false};
}

Session::Session(const ModelOptions& options, const SessionNeeds& needs)
    : trace_(options.trace.empty() ? nullptr : std::make_unique<Trace>(options.trace)),
      dump_(needs.dump),
      status_(needs.status),
      verbose_(options.verbose),
      paths_(findModel(options)),
      file_(paths_.model),
      arch_(makeArchitecture(file_.config())),
      pool_(checkedThreads(options.nThreads)),
      plan_(makeShardPlan(arch_, {NodeSpec{}})),
      embeddings_(file_) {
    checkTensors(arch_, file_, paths_.model);
    if (needs.tokenizer) {
        if (paths_.tokenizer.empty())
            throw ConfigError("--tokenizer is required: there is not exactly one .t file beside {}", paths_.model);
        tokenizer_ = std::make_unique<Tokenizer>(loadTokenizer(paths_.tokenizer));
        if (tokenizer_->vocabSize() > arch_.config.vocabSize)
            throw ConfigError("{} has {} tokens, {} only {}: they do not belong together", paths_.tokenizer,
                              tokenizer_->vocabSize(), paths_.model, arch_.config.vocabSize);
    }
    const DecoderLimits limits = chooseLimits(options, needs);
    printModel(needs.status);

    fmt::print(needs.status, "💡 SeqLen: {}\n", limits.maxPositions);
    const size_t memory = memoryNeed(arch_, plan_, 0, file_, limits).total();
    // A share of the model, which is not known before the workers are.
    const size_t nNodes = 1 + options.cluster.workers.size();
    DeviceFlags wanted = options.device;
    // Latent attention has no CUDA kernels: a GPU is not chosen for it unasked.
    if (arch_.config.isLatent() && wanted.device == "auto" && wanted.gpuIndex.empty()) wanted.device = "cpu";
    const std::vector<Device> devices = chooseDevices(wanted, memory / nNodes, needs.status);
    backend_ = openDevice(devices[0], pool_, needs.status);
    if (options.cluster.workers.empty() && devices.size() == 1)
        startAlone(limits, needs.status);
    else
        startCluster(options, devices, limits, needs);
    fmt::print(needs.status, "💿 Weights loaded\n");
    std::fflush(needs.status);
    engine_ = std::make_unique<Engine>(arch_, embeddings_, *forward_);
}

void Session::startAlone(const DecoderLimits& limits, std::FILE* status) {
    const size_t required = memoryNeed(arch_, plan_, 0, file_, limits).total();
    fmt::print(status, "📀 RequiredMemory: {} MB\n", required >> 20);
    const bool onCpu = backend_->name().starts_with("cpu");
    if (const size_t available = availableMemory(); onCpu && available > 0 && required > available)
        fmt::print(status, "⚠️ Only {} MB of memory are available: expect it to be slow\n", available >> 20);
    {
        ProgressBar bar(status, "💿 Loading weights");
        weights_ = loadWeights(arch_, plan_, 0, file_, *backend_, pool_,
                               [&](size_t done, size_t total) { bar.update(done, total); });
    }
    decoder_ = std::make_unique<Decoder>(arch_, plan_, 0, weights_, *backend_, alone_, limits,
                                         DecoderHooks{trace_.get(), dump_});
    forward_ = std::make_unique<LocalForward>(*decoder_);
}

/// The first device is the root's; each of the others is a rank in this process, before the workers elsewhere.
void Session::startCluster(const ModelOptions& options, const std::vector<Device>& devices, const DecoderLimits& limits,
                           const SessionNeeds& needs) {
    std::FILE* status = needs.status;
    ClusterOptions clusterFlags = clusterOptions(options, devices[0], pool_, status);
    clusterFlags.hooks = {trace_.get(), dump_};
    clusterFlags.ownPort = needs.ownPort;
    if (devices.size() > 1) {
        localWorkers_ = std::make_unique<LocalWorkers>(std::vector(devices.begin() + 1, devices.end()), paths_.model,
                                                       clusterFlags.secret, pool_.nThreads(),
                                                       options.cluster.memoryLimitMb << 20, status, trace_.get());
        const std::vector<Address> local = localWorkers_->addresses();
        clusterFlags.workers.insert(clusterFlags.workers.begin(), local.begin(), local.end());
    }
    auto cluster = std::make_unique<ClusterForward>(file_, arch_, *backend_, pool_, limits, std::move(clusterFlags));
    const std::vector<std::string> nodes = cluster->nodes();
    for (int rank = 0; rank < static_cast<int>(nodes.size()); rank++)
        fmt::print(status, "📀 RequiredMemory: {} MB on {}\n",
                   memoryNeed(arch_, cluster->plan(), rank, file_, limits).total() >> 20, nodes[rank]);
    const LineCost cost = cluster->lineCost();
    fmt::print(status, "⭕ {} nodes, {:.0f} us and {:.0f} MB/s between them\n", nodes.size(), cost.latencyUs,
               cost.bytesPerUs);
    cluster_ = cluster.get();
    forward_ = std::move(cluster);
}

DecoderLimits Session::chooseLimits(const ModelOptions& options, const SessionNeeds& needs) const {
    const int modelLimit = arch_.maxPositions;
    DecoderLimits limits;
    if (options.maxSeqLen < 0) throw ConfigError("--max-seq-len is {}, must be 1 or more", options.maxSeqLen);
    limits.maxPositions = options.maxSeqLen > 0 ? std::min(options.maxSeqLen, modelLimit)
                                                : std::min(modelLimit, std::max(kDefaultMaxSeqLen, needs.positions));
    if (options.maxSeqLen > modelLimit)
        fmt::print(needs.status, "⚠️ context {} instead of {}: the model is made for no more\n", modelLimit,
                   options.maxSeqLen);
    if (needs.positions > limits.maxPositions)
        throw ConfigError("{} positions are needed, the context has {} ({})", needs.positions, limits.maxPositions,
                          options.maxSeqLen > 0 ? "--max-seq-len" : "the model's limit");
    if (options.batchSize < 1 || options.batchSize > 65536)
        throw ConfigError("--batch-size is {}, must be from 1 to 65536", options.batchSize);
    // A prefix that is seen in both directions is computed in one step.
    limits.maxTokens = arch_.prefixMask ? limits.maxPositions : std::min(options.batchSize, limits.maxPositions);
    limits.maxOutputs = std::min(needs.maxOutputs, limits.maxTokens);
    limits.nKvBlocks = (limits.maxPositions + kKvBlockPositions - 1) / kKvBlockPositions * needs.nContexts;
    limits.kvType = kvType(options.kvType, file_.weightType());
    return limits;
}

void Session::printModel(std::FILE* status) const {
    const ModelConfig& c = arch_.config;
    if (tokenizer_) {
        const TokenizerFile& t = tokenizer_->file();
        if (tokenizer_->vocabSize() != c.vocabSize)
            fmt::print(status, "Tokenizer vocab size ({}) does not match the model vocab size ({})\n",
                       tokenizer_->vocabSize(), c.vocabSize);
        fmt::print(status, "📄 AddBos: {}\n", t.addBos ? 1 : 0);
        if (t.bosId >= 0) fmt::print(status, "📄 BosId: {} ({})\n", t.bosId, printable(tokenizer_->piece(t.bosId)));
        fmt::print(status, "📄 EosId:");
        for (int id : stopTokens()) fmt::print(status, " {} ({})", id, printable(tokenizer_->piece(id)));
        fmt::print(status, "\n📄 RegularVocabSize: {}\n📄 SpecialVocabSize: {}\n", t.vocab.size() - t.special.size(),
                   t.special.size());
    }
    if (!c.name.empty()) fmt::print(status, "💡 Name: {}\n", printable(c.name));
    fmt::print(status, "💡 Arch: {}\n💡 Weights: {}\n💡 Dim: {}\n💡 HeadDim: {}\n💡 QDim: {}\n💡 KvDim: {}\n", c.architecture,
               dtypeName(file_.weightType()), c.hiddenSize, c.headDim, c.qDim(), c.kvDim());
    fmt::print(status, "💡 HiddenDim: {}\n💡 VocabSize: {}\n💡 nLayers: {}\n💡 nHeads: {}\n💡 nKvHeads: {}\n",
               c.intermediateSize, c.vocabSize, c.nLayers, c.nHeads, c.nKvHeads);
    if (c.isMoe())
        fmt::print(status, "💡 nExperts: {}\n💡 nActiveExperts: {}\n💡 nSharedExperts: {}\n💡 MoeHiddenDim: {}\n",
                   c.nRoutedExperts, c.nExpertsPerToken, c.nSharedExperts, c.moeIntermediateSize);
    fmt::print(status, "💡 NormEpsilon: {:g}\n💡 RopeTheta: {:.0f}\n", c.normEps, c.ropeTheta);
}

std::string Session::modelName() const {
    return fs::path(paths_.model).stem().string();
}

std::vector<int> Session::stopTokens() const {
    std::vector<int> stops = arch_.config.eosTokenIds;
    if (tokenizer_)
        for (int id : tokenizer_->file().eosIds)
            if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
    return stops;
}

size_t Session::activeWeightBytes() const {
    double bytes = 0.0;
    for (const TensorDecl& decl : computedTensors(arch_))
        bytes += activeShare(arch_.config, decl) * static_cast<double>(file_.info(decl.name).bytes());
    return static_cast<size_t>(bytes);
}

void Session::finish() {
    if (verbose_)
        if (const std::optional<uint64_t> hash = engine_->hashLastLogits())
            fmt::print(status_, "🔑 LogitsHash: {:016x}\n", *hash);
    if (trace_) trace_->finish();
}

std::vector<int> encodePrompt(const Session& session, const std::string& text) {
    std::vector<int> tokens = session.tokenizer().encode(text, SpecialTokens::Parse, true);
    if (tokens.empty()) throw ConfigError("the prompt is empty");
    return tokens;
}

std::string readTextFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::error_code error;
    if (!file || fs::is_directory(path, error))
        throw FormatError("{}: {}", path, file ? "is a directory" : std::strerror(errno));
    return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<int> readIdsFile(const std::string& path) {
    const std::string text = readTextFile(path);
    std::vector<int> ids;
    const char* at = text.data();
    const char* end = at + text.size();
    while (at < end) {
        if (std::isspace(static_cast<unsigned char>(*at)) || std::strchr(",[]", *at)) {
            at++;
            continue;
        }
        int id = 0;
        const auto [next, error] = std::from_chars(at, end, id);
        if (error != std::errc()) throw FormatError("{}: not a list of token ids at byte {}", path, at - text.data());
        ids.push_back(id);
        at = next;
    }
    if (ids.empty()) throw FormatError("{}: holds no token ids", path);
    return ids;
}

}  // namespace dllama
