// How fast the CPU backend's products and attention are, beside what the memory can deliver.
//   cpu-kernels [threads]        DLLAMA_FORCE_ISA chooses the kernels

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cpu-backend.hpp"
#include "cpu/read-bandwidth.hpp"
#include "tensor/blocks.hpp"

namespace dllama {
namespace {

/// One tensor `w` with the same few rows over and over.
class RepeatedRows final : public TensorSource {
  public:
    RepeatedRows(DType dtype, int64_t rows, int64_t cols) : info_{"w", dtype, rows, cols}, bytes_(info_.bytes()) {
        constexpr int64_t kRows = 16;
        std::vector<float> values(kRows * cols);
        for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i * 2654435761u % 2001) / 1000 - 1;
        const size_t rowBytes = storedBytes(dtype, cols);
        quantize(dtype, values.data(), bytes_.data(), kRows * cols);
        for (int64_t r = kRows; r < rows; r++)
            std::memcpy(bytes_.data() + r * rowBytes, bytes_.data() + r % kRows * rowBytes, rowBytes);
    }
    const TensorInfo& info(std::string_view) const override { return info_; }
    bool has(std::string_view name) const override { return name == info_.name; }
    std::span<const std::byte> read(const TensorSlice&, std::vector<std::byte>&) const override { return bytes_; }
    bool isMapped(const TensorSlice&) const override { return true; }
    void release(const TensorSlice&) const override {}

  private:
    TensorInfo info_;
    std::vector<std::byte> bytes_;
};

/// The best time of a call in seconds, over about half a second: what else the machine does only adds to it.
double secondsOf(const std::function<void()>& call) {
    using Clock = std::chrono::steady_clock;
    call();
    double best = 1e9;
    const auto begin = Clock::now();
    for (int i = 0; i < 5 || Clock::now() - begin < std::chrono::milliseconds(500); i++) {
        const auto start = Clock::now();
        call();
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

Batch tokensOf(int nTokens, int firstPosition) {
    Batch batch;
    batch.nTokens = nTokens;
    batch.nSequences = 1;
    batch.maxBlocks = (firstPosition + nTokens + kKvBlockPositions - 1) / kKvBlockPositions;
    batch.sequences.assign(nTokens, 0);
    for (int t = 0; t < nTokens; t++) {
        batch.positions.push_back(firstPosition + t);
        batch.contextLengths.push_back(firstPosition + t + 1);
        batch.ropePositions.push_back(firstPosition + t);
        batch.outputRows.push_back(t);
    }
    for (int b = 0; b < batch.maxBlocks; b++) batch.blockTables.push_back(b);
    return batch;
}

Activations wave(Backend& backend, int rows, int cols) {
    Activations a = backend.allocateActivations(rows, cols, true);
    std::vector<float> values(static_cast<size_t>(rows) * cols);
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i * 40503u % 513) / 256 - 1;
    backend.uploadActivations(values.data(), rows, a);
    return a;
}

/// Seconds for the product of a (rows, cols) matrix with nTokens inputs.
double productSeconds(Backend& backend, DType dtype, int64_t rows, int cols, int nTokens) {
    const RepeatedRows source(dtype, rows, cols);
    const auto matrix = backend.loadMatrix(source, {{source.whole("w")}, {}});
    const Activations in = wave(backend, nTokens, cols);
    Activations out = backend.allocateActivations(nTokens, static_cast<int>(rows), false);
    const Batch batch = tokensOf(nTokens, 0);
    const StepInputs& step = backend.upload(batch);
    return secondsOf([&] { backend.linear(step, in, *matrix, out); });
}

double attentionSeconds(Backend& backend, const AttentionShape& shape, int nTokens, int firstPosition) {
    const Batch batch = tokensOf(nTokens, firstPosition);
    const KvLayer kv = backend.allocateKvLayer(DType::F16, batch.maxBlocks, shape.nKvHeads, shape.headDim);
    const Activations qkv = wave(backend, nTokens, shape.qkvCols());
    Activations out = backend.allocateActivations(nTokens, shape.nHeads * shape.headDim, true);
    const StepInputs& step = backend.upload(batch);
    return secondsOf([&] { backend.attention(step, qkv, shape, kv, out); });
}

void report(int nThreads) {
    ThreadPool pool(nThreads);
    const auto backend = makeCpuBackend(pool, chooseIsa());
    const double bandwidth = measureReadBandwidth(pool);
    fmt::print("{}, reads {:.1f} GB/s\n\n", backend->name(), bandwidth / 1e9);

    constexpr int kCols = 4096, kPromptRows = 4096, kPromptTokens = 128;
    fmt::print("weights   one token, GB/s   of reads   {} tokens, GFLOP/s\n", kPromptTokens);
    for (const DTypeInfo& info : kDTypes) {
        const DType dtype = info.type;
        const size_t rowBytes = storedBytes(dtype, kCols);
        const auto rows = static_cast<int64_t>(bytesBeyondCaches() / rowBytes);
        const double rate =
            static_cast<double>(rows) * static_cast<double>(rowBytes) / productSeconds(*backend, dtype, rows, kCols, 1);
        const double flops = 2.0 * kPromptRows * kCols * kPromptTokens /
                             productSeconds(*backend, dtype, kPromptRows, kCols, kPromptTokens);
        fmt::print("{:<7} {:>17.1f} {:>9.0f}% {:>20.0f}\n", dtypeName(dtype), rate / 1e9, 100 * rate / bandwidth,
                   flops / 1e9);
    }

    const AttentionShape shape{32, 4, 128, 8, 0};
    const double kvBytes = 8192.0 * 2 * 2 * shape.nKvHeads * shape.headDim;
    fmt::print("\nattention, 32 heads on 4 KV heads of 128 values (F16)\n");
    fmt::print("one token after 8191:   {:.1f} GB/s of cache\n",
               kvBytes / attentionSeconds(*backend, shape, 1, 8191) / 1e9);
    const double pairs = 512.0 * 513 / 2 * shape.nHeads;
    fmt::print("512 tokens from 0:      {:.0f} GFLOP/s\n",
               pairs * 4 * shape.headDim / attentionSeconds(*backend, shape, 512, 0) / 1e9);
}

}  // namespace
}  // namespace dllama

int main(int argc, char** argv) {
    try {
        const int nThreads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
        dllama::report(std::max(1, nThreads));
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 1;
    }
}
