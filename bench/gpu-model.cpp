// Speed of whole models on a GPU, with random weights made in memory: no checkpoint and no disk needed.
//   gpu-model <shape> [--type q40] [--layers N] [--prompt 2048] [--depths 512,32768] [--answer 128] [--rows 1,2,4]
//             [--gpus 0,1] [--collectives peer]: one GPU and then all of them
// Prints tokens a second, the bytes of weights and KV cache that a token reads, and their share of the bandwidth of a
// copy on the same GPU in the same run.

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/errors.hpp"
#include "cluster/collectives.hpp"
#include "engine/engine.hpp"
#include "gpu-ranks.hpp"
#include "gpu/cuda-backend.hpp"
#include "model/decoder.hpp"
#include "synthetic-model.hpp"

using namespace dllama;

namespace {

using Clock = std::chrono::steady_clock;

double secondsSince(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Bytes read and written a second by a device-to-device copy of 4 GB, median of 9.
double copyBandwidth() {
    constexpr size_t kBytes = size_t{4} << 30;
    void *from = nullptr, *to = nullptr;
    if (cudaMalloc(&from, kBytes) != cudaSuccess || cudaMalloc(&to, kBytes) != cudaSuccess)
        throw CudaError("no room to measure the copy bandwidth");
    cudaMemset(from, 0x5a, kBytes);
    std::vector<double> rates;
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    for (int i = 0; i < 10; i++) {
        cudaEventRecord(begin);
        cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice);
        cudaEventRecord(end);
        cudaEventSynchronize(end);
        float milliseconds = 0.0f;
        cudaEventElapsedTime(&milliseconds, begin, end);
        if (i > 0) rates.push_back(2.0 * kBytes / (milliseconds * 1e-3));
    }
    cudaFree(from);
    cudaFree(to);
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
}

/// Bytes of weights that a token of an answer needs.
double activeBytes(const Architecture& arch, const TensorSource& source) {
    double bytes = 0.0;
    for (const TensorDecl& decl : computedTensors(arch))
        bytes += activeShare(arch.config, decl) * static_cast<double>(source.info(decl.name).bytes());
    return bytes;
}

struct Options {
    std::string shape, type = "q40";
    int layers = 0, libraryRows = CudaOptions{}.libraryRows, prompt = 2048, answer = 128, repetitions = 3;
    std::vector<int> depths = {512}, rows = {1}, gpus = {0};
    std::string collectives = "peer";
};

/// Sequences differ: a batch of equal ones would share its experts.
std::vector<int> randomTokens(int n, int vocabSize, int sequence = 0) {
    std::mt19937 random(1 + sequence);
    std::vector<int> tokens(n);
    for (int& token : tokens) token = static_cast<int>(random() % static_cast<unsigned>(vocabSize));
    return tokens;
}

class Bench {
  public:
    explicit Bench(const Options& o)
        : options_(o),
          config_(configOf(o)),
          arch_(makeArchitecture(config_)),
          source_(config_, syntheticType(o.type)),
          embeddings_(source_) {
        const int nSequences = *std::max_element(o.rows.begin(), o.rows.end());
        const int longest = std::max(o.prompt, *std::max_element(o.depths.begin(), o.depths.end())) + o.answer + 2;
        DecoderLimits limits{.maxTokens = 2048, .maxOutputs = nSequences};
        limits.maxPositions = longest;
        limits.nKvBlocks = (longest + kKvBlockPositions - 1) / kKvBlockPositions +
                           (nSequences - 1) * ((o.depths[0] + o.answer + 2) / kKvBlockPositions + 1);
        const auto begin = Clock::now();
        const auto collectives = collectivesFromName(o.collectives);
        if (!collectives || collectives == Collectives::Tcp)
            throw ConfigError("--collectives {} is not known here (peer, nccl)", o.collectives);
        ranks_ =
            std::make_unique<GpuRanks>(GpuRanks::Options{o.gpus, *collectives, o.libraryRows}, arch_, source_, limits);
        double weightBytes = 0.0;
        for (int r = 0; r < ranks_->plan().nRanks(); r++) {
            weightBytes += static_cast<double>(storedWeightBytes(arch_, ranks_->plan(), r, source_));
            kvBytes_ += Decoder::kvBytesPerPosition(arch_, ranks_->plan().attentionShape(r), limits.kvType);
        }
        fmt::print("{}: {:.1f} GB of weights made and loaded in {:.1f} s\n", config_.name, weightBytes / 1e9,
                   secondsSince(begin));
        engine_ = std::make_unique<Engine>(arch_, embeddings_, *ranks_);
    }

    void run() {
        const double copy = copyBandwidth() * static_cast<double>(options_.gpus.size());
        const double weightBytes = activeBytes(arch_, source_);
        fmt::print("{}; copies move {:.2f} TB/s; a token reads {:.2f} GB of weights\n", ranks_->name(), copy / 1e12,
                   weightBytes / 1e9);
        if (options_.gpus.size() > 1)
            for (const int rows : {1, 4, 16, 256})
                fmt::print("an all-reduce of {} rows takes {:.2f} us\n", rows,
                           ranks_->allReduceMicroseconds(rows * config_.hiddenSize));
        fmt::print("| test | t/s (median of {}) | ms a step | GB/s | of copy |\n| --- | ---: | ---: | ---: | ---: |\n",
                   options_.repetitions);
        if (options_.prompt > 0) {
            const double seconds = median([&] { return promptSeconds(options_.prompt); });
            fmt::print("| pp{} | {:.0f} | | | |\n", options_.prompt, options_.prompt / seconds);
        }
        for (const int depth : options_.depths) {
            for (const int rows : options_.rows) {
                if (rows > 1 && depth != options_.depths[0]) continue;
                const double step = median([&] { return stepSeconds(depth, rows); });
                const double bytes = weightBytes + static_cast<double>(kvBytes_) * (depth + options_.answer / 2) * rows;
                // The experts that several rows choose are not known here: their bytes are not told.
                const bool known = rows == 1 || !config_.isMoe();
                fmt::print("| tg{} @ d{} x {} | {:.1f} | {:.3f} |", options_.answer, depth, rows, rows / step,
                           step * 1e3);
                known ? fmt::print(" {:.0f} | {:.0f}% |\n", bytes / step / 1e9, 100.0 * bytes / step / copy)
                      : fmt::print(" | |\n");
            }
        }
    }

  private:
    static ModelConfig configOf(const Options& o) {
        ModelConfig config = syntheticShape(o.shape);
        config.name = fmt::format("synthetic {} {}", o.shape, o.type);
        if (o.layers > 0) config.nLayers = o.layers;
        config.maxPositions = 131072;
        return config;
    }

    template <typename Measure>
    double median(const Measure& measure) {
        measure();  // warms up
        std::vector<double> seconds;
        for (int i = 0; i < options_.repetitions; i++) seconds.push_back(measure());
        std::sort(seconds.begin(), seconds.end());
        return seconds[seconds.size() / 2];
    }

    double promptSeconds(int n) {
        engine_->dropPrefixCache();
        engine_->submit({randomTokens(n, config_.vocabSize), {.temperature = 0.0f}, {1, {}}});
        const auto begin = Clock::now();
        while (engine_->running()) engine_->step();
        return secondsSince(begin);
    }

    /// Seconds a step in which `rows` sequences of `depth` positions write one token each. Tokens are drawn: the most
    /// likely ones of random weights are soon the same in every sequence, which then share their experts.
    double stepSeconds(int depth, int rows) {
        engine_->dropPrefixCache();
        for (int i = 0; i < rows; i++)  // texts of their own: common prefixes would share their cache
            engine_->submit({randomTokens(depth, config_.vocabSize, i),
                             {.temperature = 1.0f, .seed = static_cast<uint64_t>(i)},
                             {options_.answer, {}}});
        double seconds = 0.0;
        int nSteps = 0;
        while (engine_->running()) {
            const StepReport report = engine_->step();
            // Steps with prompts in them are not counted.
            if (report.nPrefillTokens > 0 || static_cast<int>(report.events.size()) != rows) continue;
            seconds += report.seconds;
            nSteps++;
        }
        return seconds / nSteps;
    }

    Options options_;
    ModelConfig config_;
    Architecture arch_;
    SyntheticSource source_;
    EmbeddingTable embeddings_;
    std::unique_ptr<GpuRanks> ranks_;
    std::unique_ptr<Engine> engine_;
    size_t kvBytes_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app("Speed of whole models with random weights on a GPU");
    app.add_option("shape", o.shape, "glm-4-9b, glm-4-32b, intellect-3, ...")->required();
    app.add_option("--type", o.type, "Type of the weights");
    app.add_option("--layers", o.layers, "Only so many layers");
    app.add_option("--prompt", o.prompt, "Tokens of the prompt; 0: none");
    app.add_option("--answer", o.answer, "Tokens written");
    app.add_option("--depths", o.depths, "Positions before the answer")->delimiter(',');
    app.add_option("--rows", o.rows, "Sequences that write at once, at the first depth")->delimiter(',');
    app.add_option("--gpus", o.gpus, "GPUs to compute on together, after the first one alone")->delimiter(',');
    app.add_option("--collectives", o.collectives, "How several GPUs add up: peer or nccl");
    app.add_option("--library-rows", o.libraryRows, "From so many prompt tokens on products go through cuBLAS");
    app.add_option("--repetitions", o.repetitions, "Measurements of each");
    CLI11_PARSE(app, argc, argv);
    try {
        // As the program does for several GPUs (app/device.cpp), before CUDA starts.
        if (o.gpus.size() > 1) setenv("CUDA_MODULE_LOADING", "EAGER", 0);
        Options first = o;
        first.gpus.resize(1);
        Bench(first).run();
        if (o.gpus.size() > 1) Bench(o).run();
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 1;
    }
}
