#include "cluster/rank-loader.hpp"

#include "base/json.hpp"
#include "cluster/memory-plan.hpp"
#include "cluster/time-limits.hpp"
#include "cluster/weights-id.hpp"
#include "net/frame.hpp"
#include "net/weight-stream.hpp"

namespace dllama {

RankLoader::RankLoader(const WorkerOptions& options, ThreadPool& pool) : options_(options), pool_(pool) {
    if (options_.modelPath.empty()) return;
    file_ = std::make_unique<ModelFile>(options_.modelPath);
    fileId_ = weightsId(*file_);
}

/// In the cache folder; in memory if there is no room.
std::unique_ptr<SliceStore> RankLoader::openStore(const Architecture& arch, const ClusterSetup& setup,
                                                  const std::vector<TensorSlice>& slices) {
    const uint64_t key = slicesKey(setup.modelId, slices);
    const std::vector<TensorInfo> tensors = describeTensors(arch, setup.weightType, setup.exceptions);
    if (!options_.cacheDir.empty()) try {
            return std::make_unique<SliceStore>(tensors, slices, key, options_.cacheDir, options_.cacheLimit);
        } catch (const ConfigError& error) {
            options_.log(fmt::format("the weights are not kept for the next start: {}", error.what()));
        }
    return std::make_unique<SliceStore>(tensors, slices, key, "");
}

LoadedRank& RankLoader::load(const ClusterSetup& setup, int rank, Connection& root, uint32_t session) {
    auto next = std::make_unique<LoadedRank>();
    next->arch = makeArchitecture(setup.config);
    const int unit = cutUnit(next->arch, [&](const std::string& tensor) { return setup.typeOf(tensor); });
    next->plan = makeShardPlan(next->arch, setup.nodes, setup.placement, setup.expertUse, unit);
    if (next->plan.hash() != setup.planHash)
        throw ProtocolError("{}: its plan for {} ranks is not what this worker computes", root.peer(),
                            next->plan.nRanks());
    checkFrames(next->arch, next->plan, setup.limits, embeddingType(setup), setup.wire);
    const std::vector<TensorSlice> slices = rankSlices(next->arch, next->plan, rank);
    next->key = slicesKey(setup.modelId ^ setup.planHash, slices);

    const bool inMemory = loaded_ && loaded_->key == next->key;
    SliceStore* missing = nullptr;
    if (!inMemory) {
        loaded_.reset();  // its memory is needed now
        if (!file_ || fileId_ != setup.modelId) {
            if (file_) options_.log(fmt::format("{} is not the root's model: receiving its weights", file_->path()));
            std::unique_ptr<SliceStore> store = openStore(next->arch, setup, slices);
            if (!store->complete()) missing = store.get();
            next->source = std::move(store);
        }
    }
    const nlohmann::json holdings = {{"complete", missing == nullptr}};
    sendFrame(root, session, FrameType::Holdings, holdings.dump(), after(kAnswerLimit));
    if (missing) {
        const std::string notKept = receiveSlices(root, session, *missing);
        if (!notKept.empty()) options_.log(fmt::format("the weights are not kept for the next start: {}", notKept));
    }

    if (!inMemory) {
        next->backend = options_.makeBackend(pool_);
        const TensorSource& source = next->source ? *next->source : *file_;
        checkTensors(next->arch, source, root.peer());
        Clock::time_point told = Clock::now();
        next->weights =
            loadWeights(next->arch, next->plan, rank, source, *next->backend, pool_, [&](size_t done, size_t total) {
                if (Clock::now() - told < std::chrono::milliseconds(200)) return;
                told = Clock::now();
                const uint64_t values[2] = {done, total};
                sendFrame(root, session, FrameType::Progress, std::as_bytes(std::span(values)), after(kAnswerLimit));
            });
        loaded_ = std::move(next);
        options_.log(fmt::format("rank {} of {}: {} MB of weights loaded", rank, loaded_->plan.nRanks(),
                                 storedWeightBytes(loaded_->arch, loaded_->plan, rank, source) >> 20));
    }
    sendFrame(root, session, FrameType::Ready, "", after(kAnswerLimit));
    return *loaded_;
}

}  // namespace dllama
