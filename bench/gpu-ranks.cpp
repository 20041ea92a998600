#include "gpu-ranks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "gpu/cuda-backend.hpp"
#include "gpu/cuda-collectives.hpp"

namespace dllama {

namespace {

using Clock = std::chrono::steady_clock;

/// Where NCCL ranks of a cluster gather rows by TCP, rank 0 is content here with its own: which tokens are written does
/// not matter for their speed.
class OwnRows final : public Communicator {
  public:
    OwnRows(int rank, int nRanks) : rank_(rank), nRanks_(nRanks) {}
    int rank() const override { return rank_; }
    int nRanks() const override { return nRanks_; }
    void allReduce(const StepInputs&, Activations&) override {}
    void gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) override {
        if (rank_ > 0) return;
        const auto width = std::accumulate(colsOfRank.begin(), colsOfRank.end(), size_t{0});
        const auto own = static_cast<size_t>(colsOfRank[0]);
        for (size_t row = 0; row < static_cast<size_t>(nRows); row++)
            std::copy_n(mine.data() + row * own, own, all + row * width);
    }

  private:
    const int rank_, nRanks_;
};

}  // namespace

GpuRanks::GpuRanks(const Options& options, const Architecture& arch, const TensorSource& source,
                   const DecoderLimits& limits)
    : arch_(arch), errors_(options.gpus.size()) {
    const int nRanks = static_cast<int>(options.gpus.size());
    const std::vector<NodeSpec> nodes(nRanks);
    plan_ = makeShardPlan(arch, nodes, choosePlacement(arch, nodes), {});
    for (int r = 0; r < nRanks; r++) ranks_.push_back(std::make_unique<Rank>());
    for (int r = 1; r < nRanks; r++)
        threads_.emplace_back([this, r](const std::stop_token& closing) { serve(r, closing); });
    const std::string rendezvous =
        nRanks > 1 ? makeCudaCollectives(options.gpus[0])->newRendezvous(options.collectives) : std::string();
    onAllRanks([&](int r) {
        Rank& rank = *ranks_[r];
        rank.backend = makeCudaBackend({.gpuIndex = options.gpus[r], .libraryRows = options.libraryRows});
        ThreadPool pool(std::max(1, 8 / nRanks));
        rank.weights = loadWeights(arch_, plan_, r, source, *rank.backend, pool, {});
        if (nRanks > 1) {
            rank.rows = std::make_unique<OwnRows>(r, nRanks);
            rank.communicator = makeCudaCollectives(options.gpus[r])
                                    ->join({options.collectives, r, nRanks, rendezvous}, *rank.backend, *rank.rows, {});
        }
        Communicator& collective = rank.communicator ? *rank.communicator : alone_;
        rank.decoder = std::make_unique<Decoder>(arch_, plan_, r, rank.weights, *rank.backend, collective, limits);
    });
}

void GpuRanks::serve(int rank, const std::stop_token& closing) {
    for (int nSeen = 0;; nSeen++) {
        while (nTasks_ == nSeen)
            if (closing.stop_requested()) return;
        try {
            (*task_)(rank);
        } catch (...) {
            errors_[rank] = std::current_exception();
        }
        nDone_++;
    }
}

void GpuRanks::onAllRanks(const std::function<void(int)>& body) {
    task_ = &body;
    nDone_ = 0;
    nTasks_++;
    try {
        body(0);
    } catch (...) {
        errors_[0] = std::current_exception();
    }
    while (nDone_ != static_cast<int>(threads_.size())) std::this_thread::yield();
    for (std::exception_ptr& error : errors_)
        if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

void GpuRanks::forward(const Batch& batch, std::vector<float>& best) {
    onAllRanks([&](int r) {
        std::vector<float> none;
        ranks_[r]->decoder->forward(batch, r == 0 ? best : none);
    });
}

void GpuRanks::gatherLogits(std::vector<float>& logits) {
    onAllRanks([&](int r) {
        std::vector<float> none;
        ranks_[r]->decoder->gatherLogits(r == 0 ? logits : none);
    });
}

std::string GpuRanks::name() const {
    std::string text;
    for (const auto& rank : ranks_) text += fmt::format("{}{}", text.empty() ? "" : " + ", rank->backend->name());
    return text;
}

double GpuRanks::allReduceMicroseconds(int n) {
    constexpr int kSums = 200, kSteps = 10;
    double best = 1e30;
    onAllRanks([&](int r) {
        Backend& backend = *ranks_[r]->backend;
        Activations x = backend.allocateActivations(1, n, false);
        Batch batch;
        batch.nTokens = batch.nSequences = batch.maxBlocks = 1;
        batch.embeddings.resize(sizeof(float));
        batch.positions = batch.sequences = batch.blockTables = {0};
        batch.ropePositions.resize(static_cast<size_t>(arch_.ropeParts));
        batch.contextLengths = {1};
        std::vector<float> values(n);
        for (int i = 0; i < kSteps; i++) {
            const StepInputs& step = backend.upload(batch);
            const auto begin = Clock::now();
            backend.run(fmt::format("all-reduces of {}", n), [&] {
                for (int k = 0; k < kSums; k++) ranks_[r]->communicator->allReduce(step, x);
            });
            backend.download(x, 1, values.data());
            // The first step is not recorded, the second one is being recorded.
            if (r == 0 && i > 1)
                best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / kSums);
        }
    });
    return best;
}

}  // namespace dllama
