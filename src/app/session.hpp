#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "app/device.hpp"
#include "app/local-workers.hpp"
#include "app/options.hpp"
#include "arch/architecture.hpp"
#include "backend/backend.hpp"
#include "base/thread-pool.hpp"
#include "base/trace.hpp"
#include "cluster/cluster-forward.hpp"
#include "engine/engine.hpp"
#include "format/model-file.hpp"
#include "model/decoder.hpp"
#include "model/weights.hpp"
#include "parallel/communicator.hpp"
#include "text/tokenizer.hpp"

namespace dllama {

/// Paths of the model and tokenizer to use: those given, or the demo model's. A tokenizer that is not named is looked
/// for beside the model. Throws ConfigError if there is none.
struct ModelPaths {
    std::string model;
    std::string tokenizer;
    bool isDemo = false;
};
ModelPaths findModel(const ModelOptions& options);
/// Likewise, for commands that need only a tokenizer.
std::string findTokenizer(const std::string& path);

/// Throws FormatError, naming the file, if it is damaged or its parts do not fit together.
Tokenizer loadTokenizer(const std::string& path);

/// --nthreads, or one for each core. Throws ConfigError for an impossible number.
int checkedThreads(int requested);

/// How a command uses the model.
struct SessionNeeds {
    int maxOutputs = 1;
    /// Texts of the whole context length that the KV cache has room for at once.
    int nContexts = 1;
    /// Positions the command will use at least; 0: unknown.
    int positions = 0;
    bool tokenizer = true;
    /// The port that this program itself listens on, which no worker can be at; 0: none.
    int ownPort = 0;
    /// Where the residual behind each layer goes; null: nowhere. It must outlive the session.
    LayerDump* dump = nullptr;
    /// Where state is told: stdout as distributed-llama does, or stderr where stdout carries data.
    std::FILE* status = stdout;
};

/// A model ready to run: file, tokenizer, backend, weights and engine, in the order of their dependence.
class Session {
  public:
    Session(const ModelOptions& options, const SessionNeeds& needs);

    const ModelFile& file() const { return file_; }
    const Architecture& arch() const { return arch_; }
    const Tokenizer& tokenizer() const { return *tokenizer_; }
    Backend& backend() { return *backend_; }
    ThreadPool& pool() { return pool_; }
    Engine& engine() { return *engine_; }
    /// Null on one machine.
    const ClusterForward* cluster() const { return cluster_; }
    int nThreads() const { return pool_.nThreads(); }
    bool isDemo() const { return paths_.isDemo; }
    /// The model's file name without folder and ending.
    std::string modelName() const;
    /// Ids that end an answer: the model's and the tokenizer's.
    std::vector<int> stopTokens() const;
    /// Bytes of weights that a step of one token reads, and of all.
    size_t activeWeightBytes() const;
    /// Must end a run: completes the trace and, with --verbose, prints a hash of the last logits, by which two runs
    /// are compared. Throws FormatError if the trace cannot be written.
    void finish();

  private:
    void startAlone(const DecoderLimits& limits, std::FILE* status);
    void startCluster(const ModelOptions& options, const std::vector<Device>& devices, const DecoderLimits& limits,
                      const SessionNeeds& needs);
    DecoderLimits chooseLimits(const ModelOptions& options, const SessionNeeds& needs) const;
    void printModel(std::FILE* status) const;

    std::unique_ptr<Trace> trace_;  // or null
    LayerDump* const dump_;         // or null
    std::FILE* const status_;
    const bool verbose_;
    ModelPaths paths_;
    ModelFile file_;
    Architecture arch_;
    std::unique_ptr<Tokenizer> tokenizer_;
    ThreadPool pool_;
    std::unique_ptr<Backend> backend_;
    ShardPlan plan_;
    RankWeights weights_;
    EmbeddingTable embeddings_;
    SingleRank alone_;
    std::unique_ptr<LocalWorkers> localWorkers_;  // or null
    std::unique_ptr<Decoder> decoder_;
    std::unique_ptr<ForwardPass> forward_;
    const ClusterForward* cluster_ = nullptr;
    std::unique_ptr<Engine> engine_;
};

/// Throws ConfigError for a prompt that is empty once it is encoded.
std::vector<int> encodePrompt(const Session& session, const std::string& text);

/// Reads ids separated by commas or white space, or a JSON array. Throws FormatError naming the file.
std::vector<int> readIdsFile(const std::string& path);
/// The whole file. Throws FormatError naming it.
std::string readTextFile(const std::string& path);

}  // namespace dllama
