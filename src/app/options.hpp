#pragma once

#include <string>
#include <vector>

#include "engine/sampler.hpp"

/// What the command line says, one struct for each group of flags.
namespace dllama {

/// Other machines that compute with this one.
struct ClusterFlags {
    std::vector<std::string> workers;  // host:port; empty: this machine alone
    std::string secretFile;
    bool insecure = false;
    std::string nodeWeights;  // "4,2,1", "measured", or empty: equal
    size_t memoryLimitMb = 0;
    std::string expertPlacement = "auto";
    int waitForWorkers = 5;  // seconds
    std::string collectives = "auto";
};

/// What computes on this machine.
struct DeviceFlags {
    std::string device = "auto";
    std::string gpuIndex;  // "0,1"; empty: not given
};

struct ModelOptions {
    std::string model;      // empty: the demo model
    std::string tokenizer;  // empty: the one beside the model
    int nThreads = 0;       // 0: one a core
    int maxSeqLen = 0;      // 0: chosen by model and memory
    int batchSize = 512;
    std::string kvType = "auto";
    std::string bufferFloatType = "q80";
    bool verbose = false;
    std::string trace;  // empty: none
    DeviceFlags device;
    ClusterFlags cluster;
};

struct InferenceOptions {
    ModelOptions model;
    SamplingParams sampling;
    bool seedGiven = false;
    std::string prompt;
    int steps = 0;  // 0: to the end of the answer
};

struct ChatOptions {
    ModelOptions model;
    SamplingParams sampling;
    bool seedGiven = false;
    std::string system;
    bool systemGiven = false;  // an empty one means none
    std::string chatFormat;    // empty: the tokenizer's
    int maxTokens = -1;
    bool noThink = false;
};

struct ApiOptions {
    ModelOptions model;
    SamplingParams sampling;
    std::string chatFormat;  // empty: the tokenizer's
    std::string host = "127.0.0.1";
    int port = 9990;
    int nParallel = 4;
    int queueLimit = 64;
    std::vector<std::string> names;
    std::string keyFile;
    std::string corsOrigin;
    std::string tlsCertificate, tlsKey;
    int requestSeconds = 0;
    int drainSeconds = 30;
    int bodyMegabytes = 32;
    int connections = 512;
};

struct PerplexityOptions {
    ModelOptions model;
    std::string prompt;
    std::string textFile;
    std::string idsFile;
    int chunk = 0;
};

struct BenchmarkOptions {
    ModelOptions model;
    std::vector<int> promptTokens = {512};
    std::vector<int> answerTokens = {128};
    int repetitions = 5;
    int depth = 0;
    bool json = false;
};

struct InfoOptions {
    ModelOptions model;
    bool tensors = false;
};

struct LogitsOptions {
    ModelOptions model;
    std::vector<int> ids;
    std::string idsFile;
    std::string out;
    std::string dumpLayers;  // folder; empty: none
    int greedy = 0;
};

struct TokenizeOptions {
    std::string tokenizer;
    std::string text;
    std::string textFile;
    bool parseSpecial = false;
    bool json = false;
};

struct TemplateOptions {
    std::string tokenizer;
    std::string family;
    std::string request;
    std::string date;
    std::string parse;
    std::string tools;
    bool thinkClosed = false;
    bool truncated = false;
};

struct WorkerFlags {
    std::string host;  // empty: all addresses with a secret, else loopback
    int port = 9999;
    int nThreads = 0;
    std::string secretFile;
    bool insecure = false;
    std::string cacheDir;  // empty: the user's; "none": nothing is kept
    size_t cacheSizeMb = 0;
    std::string model;
    size_t memoryLimitMb = 0;
    std::string trace;  // empty: none
    DeviceFlags device;
};

int runInference(const InferenceOptions& options);
int runChat(const ChatOptions& options);
int runApi(const ApiOptions& options);
int runPerplexity(const PerplexityOptions& options);
int runBenchmark(const BenchmarkOptions& options);
int runInfo(const InfoOptions& options);
int runLogits(const LogitsOptions& options);
int runTokenize(const TokenizeOptions& options);
int runTemplate(const TemplateOptions& options);
int runWorker(const WorkerFlags& flags);
/// Writes a new secret for a cluster.
int runKeygen(const std::string& path);

}  // namespace dllama
