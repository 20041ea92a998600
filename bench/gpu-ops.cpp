// Time of each operation of a decode step as it runs in a recorded step: the operation for all layers in a row, with
// random weights, against the bytes it must read.
//   gpu-ops <shape> [--type q40] [--layers N] [--depth 512] [--ranks N] [--rows 1,16]
// Rows are tokens of as many sequences, with inputs of their own, so that a router chooses for each by itself.

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "base/errors.hpp"
#include "gpu/cuda-backend.hpp"
#include "model/weights.hpp"
#include "parallel/shard-plan.hpp"
#include "synthetic-model.hpp"

using namespace dllama;

namespace {

class Bench {
  public:
    Bench(const ModelConfig& config, DType type, int depth, int nRanks, int maxRows)
        : config_(config),
          arch_(makeArchitecture(config)),
          source_(config, type),
          plan_(makeShardPlan(arch_, std::vector<NodeSpec>(nRanks))),
          shape_(plan_.attentionShape(0)),
          depth_(depth),
          maxRows_(maxRows) {
        weights_ = loadWeights(arch_, plan_, 0, source_, *backend_, pool_, {});
        blocksOfRow_ = depth / kKvBlockPositions + 1;
        const int nBlocks = blocksOfRow_ * maxRows;
        for (int i = 0; i < config.nLayers; i++)
            kv_.push_back(backend_->allocateKvLayer(DType::F16, nBlocks, shape_.nKvHeads, config.headDim));
        const RopeTables tables = makeRopeTables(arch_, depth + 1);
        rope_.style = arch_.ropeStyle;
        rope_.parts = arch_.ropeParts;
        rope_.rotaryDim = tables.rotaryDim;
        rope_.cos = backend_->uploadVector(tables.cos.data(), static_cast<int64_t>(tables.cos.size()));
        rope_.sin = backend_->uploadVector(tables.sin.data(), static_cast<int64_t>(tables.sin.size()));
        const RankShare& share = plan_.share(0);
        x_ = activations(config.hiddenSize, false);
        normed_ = activations(config.hiddenSize, true);
        qkv_ = activations(shape_.qkvCols(), false);
        context_ = activations(shape_.nHeads * config.headDim, true);
        hidden_ = activations(share.ffn.size(), true);
        shared_ = activations(std::max(32, share.shared.size()), true);
        y_ = activations(config.hiddenSize, false);
        logits_ = activations(share.vocabulary.size(), false);
        best_ = activations(topLogitsCols(kMaxTopLogits), false);
        if (config.isMoe()) routing_ = backend_->allocateRouting(maxRows, config.nExpertsPerToken);
        fill(x_);
        fill(y_);
    }

    void run(int rows) {
        makeBatch(rows);
        total_ = 0.0;
        fmt::print(
            "{} at {} positions, {} rows, {}\n| operation | times | us each | MB | GB/s | us a step |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: |\n",
            config_.name, depth_, rows, backend_->name());
        const double kvMb = 4e-6 * depth_ * shape_.nKvHeads * config_.headDim * rows;
        op("norm", 2.0 * config_.nLayers, 0.0, [&](LayerWeights& w, KvLayer&) {
            for (int i = 0; i < 2; i++)
                backend_->addNorm(*step_, {.x = &x_,
                                           .y = &y_,
                                           .post = w.postAttnNorm ? &*w.postAttnNorm : nullptr,
                                           .next = &w.ffnNorm,
                                           .out = &normed_});
            return true;
        });
        op("qkv", config_.nLayers, mb(weights_.layers[0].qkv.get()), [&](LayerWeights& w, KvLayer&) {
            backend_->linear(*step_, normed_, *w.qkv, qkv_);
            return true;
        });
        op("rope and attention", config_.nLayers, kvMb, [&](LayerWeights& w, KvLayer& kv) {
            backend_->attend(*step_, qkv_, shape_, rope_, w.qNorm ? &*w.qNorm : nullptr, w.kNorm ? &*w.kNorm : nullptr,
                             kv, context_);
            return true;
        });
        op("attention output", config_.nLayers, mb(weights_.layers[0].o.get()), [&](LayerWeights& w, KvLayer&) {
            backend_->linear(*step_, context_, *w.o, y_);
            return true;
        });
        const LayerWeights& first = weights_.layers.front();
        const LayerWeights& last = weights_.layers.back();
        ffn("dense", first.ffn, hidden_, [](LayerWeights& w) -> FfnWeights* { return w.ffn.up ? &w.ffn : nullptr; });
        if (last.moe) {
            const FfnWeights& shared = last.moe->shared;
            // Of independent choices, as random inputs' are nearly, so many experts are some row's.
            const double share = static_cast<double>(config_.nExpertsPerToken) / config_.nRoutedExperts;
            const double expertMb =
                1e-6 * static_cast<double>(last.moe->experts->deviceBytes) * (1.0 - std::pow(1.0 - share, rows));
            op("moe", moeLayers(),
               expertMb + mb(shared.gate.get()) + mb(shared.up.get()) + mb(shared.down.get()) +
                   4e-6 * config_.nRoutedExperts * config_.hiddenSize,
               [&](LayerWeights& w, KvLayer&) {
                   if (w.moe) {
                       const FfnWeights& beside = w.moe->shared;
                       backend_->moe(*step_, normed_,
                                     {&w.moe->router, w.moe->experts.get(), beside.gate.get(), beside.up.get(),
                                      beside.down.get()},
                                     shared_, routing_, y_);
                   }
                   return w.moe.has_value();
               });
        }
        op(
            "head", 1, mb(weights_.head.get()),
            [&](LayerWeights&, KvLayer&) {
                backend_->head(*step_, normed_, *weights_.head, logits_);
                return true;
            },
            config_.nLayers);
        op(
            "best logits", 1, 4e-6 * static_cast<double>(logits_.cols),
            [&](LayerWeights&, KvLayer&) {
                backend_->topLogits(*step_, logits_, 0, kMaxTopLogits, best_);
                return true;
            },
            config_.nLayers);
        fmt::print("| sum | | | | | {:.0f} |\n", total_);
    }

  private:
    Activations activations(int cols, bool quantized) {
        return backend_->allocateActivations(maxRows_, cols, quantized);
    }
    void fill(Activations& to) {
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<float> values(static_cast<size_t>(to.maxRows) * to.cols);
        for (float& value : values) value = normal(random);
        backend_->uploadActivations(values.data(), to.maxRows, to);
    }
    void makeBatch(int rows) {
        batch_ = {};
        batch_.nTokens = batch_.nSequences = rows;
        batch_.maxBlocks = blocksOfRow_;
        for (int row = 0; row < rows; row++) {
            for (int b = 0; b < blocksOfRow_; b++) batch_.blockTables.push_back(row * blocksOfRow_ + b);
            batch_.positions.push_back(depth_);
            batch_.ropePositions.push_back(depth_);
            batch_.contextLengths.push_back(depth_ + 1);
            batch_.sequences.push_back(row);
            batch_.outputRows.push_back(row);
            batch_.outputTemperatures.push_back(1.0f);
        }
        batch_.nTop = kMaxTopLogits;
        batch_.embeddingType = DType::F32;
        batch_.embeddings.resize(static_cast<size_t>(rows) * config_.hiddenSize * sizeof(float));
    }
    static double mb(const Matrix* m) { return m ? 1e-6 * static_cast<double>(m->deviceBytes) : 0.0; }
    int moeLayers() const { return config_.nLayers - config_.firstMoeLayer; }

    void ffn(const std::string& name, const FfnWeights& some, Activations& hidden,
             const std::function<FfnWeights*(LayerWeights&)>& of) {
        if (!some.up) return;
        int n = 0;
        for (LayerWeights& w : weights_.layers) n += of(w) != nullptr;
        op(name + " gate and up", n, mb(some.gate.get()) + mb(some.up.get()), [&](LayerWeights& w, KvLayer&) {
            FfnWeights* f = of(w);
            if (f) backend_->ffnUp(*step_, normed_, f->gate.get(), *f->up, arch_.activation, hidden);
            return f != nullptr;
        });
        op(name + " down", n, mb(some.down.get()), [&](LayerWeights& w, KvLayer&) {
            FfnWeights* f = of(w);
            if (f) backend_->linear(*step_, hidden, *f->down, y_);
            return f != nullptr;
        });
    }

    /// The body runs `times` in all, or `runs`: an operation that a step has once is measured once a layer, for alone
    /// it would show a step's launch.
    void op(const std::string& name, double times, double mb, const std::function<bool(LayerWeights&, KvLayer&)>& body,
            int runs = 0) {
        const auto once = [&] {
            step_ = &backend_->upload(batch_);
            backend_->run(name, [&] {
                for (size_t i = 0; i < weights_.layers.size(); i++) body(weights_.layers[i], kv_[i]);
            });
        };
        constexpr int kRepeats = 30;
        for (int i = 0; i < 5; i++) once();
        cudaDeviceSynchronize();
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < kRepeats; i++) once();
        cudaDeviceSynchronize();
        const double us =
            std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / kRepeats;
        const double each = us / (runs > 0 ? runs : times);
        total_ += each * times;
        fmt::print("| {} | {:.0f} | {:.2f} | {:.2f} | {:.0f} | {:.0f} |\n", name, times, each, mb, mb / each * 1e3,
                   each * times);
    }

    ModelConfig config_;
    Architecture arch_;
    SyntheticSource source_;
    ThreadPool pool_{8};
    std::unique_ptr<Backend> backend_ = makeCudaBackend();
    ShardPlan plan_;
    AttentionShape shape_;
    int depth_, maxRows_, blocksOfRow_ = 0;
    RankWeights weights_;
    std::vector<KvLayer> kv_;
    Rope rope_;
    Activations x_, normed_, qkv_, context_, hidden_, shared_, y_, logits_, best_;
    Routing routing_;
    Batch batch_;
    const StepInputs* step_ = nullptr;
    double total_ = 0.0;
};

}  // namespace

int main(int argc, char** argv) {
    std::string shape, type = "q40";
    int layers = 0, depth = 512, nRanks = 1;
    std::vector<int> rows = {1};
    CLI::App app("Time of each operation of a decode step on a GPU");
    app.add_option("shape", shape, "glm-4-9b, glm-4-32b, intellect-3, ...")->required();
    app.add_option("--type", type, "Type of the weights");
    app.add_option("--layers", layers, "Only so many layers");
    app.add_option("--depth", depth, "Positions before the token");
    app.add_option("--ranks", nRanks, "The share of one of so many GPUs")->check(CLI::Range(1, 64));
    app.add_option("--rows", rows, "Tokens of a step, each of another sequence")->delimiter(',');
    CLI11_PARSE(app, argc, argv);
    try {
        ModelConfig config = syntheticShape(shape);
        config.name = fmt::format("synthetic {} {}", shape, type);
        if (layers > 0) config.nLayers = layers;
        Bench bench(config, syntheticType(type), depth, nRanks, *std::max_element(rows.begin(), rows.end()));
        for (const int n : rows) bench.run(n);
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 1;
    }
}
