#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu-features.hpp"
#include "cluster/cluster-forward.hpp"
#include "cluster/worker.hpp"
#include "cpu/cpu-backend.hpp"
#include "engine/engine.hpp"

namespace dllama::test {

/// Lines that libraries told, from all threads.
class LogLines {
  public:
    Log log() {
        return [this](const std::string& line) {
            const std::lock_guard lock(mutex_);
            lines_.push_back({line, Clock::now()});
        };
    }
    /// When a line with `part` was told first.
    std::optional<Clock::time_point> when(const std::string& part) const {
        const std::lock_guard lock(mutex_);
        for (const Line& line : lines_)
            if (line.text.find(part) != std::string::npos) return line.time;
        return std::nullopt;
    }
    /// Waits up to 10 s until `n` lines with `part` were told.
    bool waitFor(const std::string& part, int n = 1) const {
        const Deadline deadline = after(std::chrono::seconds(10));
        while (count(part) < n && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return count(part) >= n;
    }
    int count(const std::string& part) const {
        const std::lock_guard lock(mutex_);
        int n = 0;
        for (const Line& line : lines_) n += line.text.find(part) != std::string::npos;
        return n;
    }
    std::string all() const {
        const std::lock_guard lock(mutex_);
        std::string text;
        for (const Line& line : lines_) text += line.text + "\n";
        return text;
    }

  private:
    struct Line {
        std::string text;
        Clock::time_point time;
    };
    mutable std::mutex mutex_;
    std::vector<Line> lines_;
};

inline std::unique_ptr<Backend> cpuBackend(ThreadPool& pool) {
    return makeCpuBackend(pool, chooseIsa());
}

/// A worker in a thread of this process, on loopback.
class WorkerThread {
  public:
    explicit WorkerThread(WorkerOptions options = {}) {
        if (options.address.host.empty()) options.address = {"127.0.0.1", 0};
        if (!options.makeBackend) options.makeBackend = cpuBackend;
        options.log = lines.log();
        worker = std::make_unique<Worker>(std::move(options));
        thread = std::thread([this] { worker->run(); });
    }
    ~WorkerThread() { stop(); }
    void stop() {
        if (!thread.joinable()) return;
        worker->stop();
        thread.join();
        worker.reset();
    }
    Address address() const { return {"127.0.0.1", worker->port()}; }

    LogLines lines;
    std::unique_ptr<Worker> worker;
    std::thread thread;
};

/// A root with its model.
struct RootUnderTest {
    RootUnderTest(const std::string& path, ClusterOptions options, DecoderLimits limits = {},
                  const std::function<std::unique_ptr<Backend>(ThreadPool&)>& makeBackend = cpuBackend)
        : file(path), arch(makeArchitecture(file.config())), pool(1), backend(makeBackend(pool)), embeddings(file) {
        if (limits.maxPositions == 0) limits.maxPositions = arch.maxPositions;
        if (limits.maxTokens == 512) limits.maxTokens = 16;
        if (arch.prefixMask) limits.maxTokens = limits.maxOutputs = limits.maxPositions;
        limits.kvType = DType::F32;
        limits.nKvBlocks = 4 * ((limits.maxPositions + kKvBlockPositions - 1) / kKvBlockPositions);
        options.log = lines.log();
        forward = std::make_unique<ClusterForward>(file, arch, *backend, pool, limits, std::move(options));
        engine = std::make_unique<Engine>(arch, embeddings, *forward);
    }

    std::vector<float> logits(const std::vector<int>& tokens) {
        std::vector<float> all;
        engine->score(tokens, 0,
                      [&](int, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); });
        return all;
    }
    std::vector<int> greedy(const std::vector<int>& prompt, int n, const std::function<void(int)>& eachStep = {}) {
        engine->dropPrefixCache();  // each answer computes its whole prompt
        const int request = engine->submit({prompt, {.temperature = 0.0f}, {n, {}}});
        std::vector<int> tokens;
        try {
            for (int step = 0; engine->running(); step++) {
                if (eachStep) eachStep(step);
                for (const TokenEvent& event : engine->step().events) tokens.push_back(event.token);
            }
        } catch (...) {
            engine->cancel(request);
            throw;
        }
        return tokens;
    }

    LogLines lines;
    ModelFile file;
    Architecture arch;
    ThreadPool pool;
    std::unique_ptr<Backend> backend;
    EmbeddingTable embeddings;
    std::unique_ptr<ClusterForward> forward;
    std::unique_ptr<Engine> engine;
};

/// A folder that is gone after the test.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string name = (std::filesystem::temp_directory_path() / "dllama-net-XXXXXX").string();
        path_ = ::mkdtemp(name.data());
    }
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }
    std::string file(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

/// A prompt that every tiny model can read.
inline std::vector<int> somePrompt(const ModelConfig& config, int n) {
    std::vector<int> tokens;
    for (int i = 0; i < n; i++) tokens.push_back((i * 37 + 11) % 290);
    if (config.architecture == "chatglm") {
        tokens.push_back(config.gmaskTokenId);
        tokens.push_back(config.bosTokenId);
    }
    return tokens;
}

}  // namespace dllama::test
