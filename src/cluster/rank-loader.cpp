#include "cluster/rank-loader.hpp"

#include <xxhash.h>

#include <algorithm>

#include "base/json.hpp"
#include "base/system-info.hpp"
#include "cluster/memory-plan.hpp"
#include "cluster/slice-digests.hpp"
#include "cluster/time-limits.hpp"
#include "cluster/weights-id.hpp"
#include "net/frame.hpp"
#include "net/weight-stream.hpp"

namespace dllama {

namespace {

/// Tensors of which nothing but the description is known yet.
class Described final : public TensorSource {
  public:
    explicit Described(const std::vector<TensorInfo>& tensors) {
        for (const TensorInfo& tensor : tensors) infos_.emplace(tensor.name, &tensor);
    }
    const TensorInfo& info(std::string_view name) const override {
        const auto found = infos_.find(name);
        if (found == infos_.end()) throw FormatError("the root's model: there is no tensor {}", name);
        return *found->second;
    }
    bool has(std::string_view name) const override { return infos_.contains(name); }
    std::span<const std::byte> read(const TensorSlice& slice, std::vector<std::byte>&) const override {
        throw FormatError("tensor {} has not been received", slice.name);
    }
    bool isMapped(const TensorSlice&) const override { return false; }
    void release(const TensorSlice&) const override {}

  private:
    std::unordered_map<std::string_view, const TensorInfo*> infos_;
};

/// Tells the root now and then how far this is; ends it when the session has ended.
std::function<void(size_t done, size_t total)> progressTo(const RankLoader::Dialogue& root) {
    static constexpr std::chrono::milliseconds kBetween{200};
    return [&root, told = Clock::now()](size_t done, size_t total) mutable {
        if (root.ended.stop_requested()) throw ConnectionError("the session has ended");
        if (Clock::now() - told < kBetween) return;
        told = Clock::now();
        const uint64_t values[2] = {done, total};
        sendFrame(root.line, root.session, FrameType::Progress, std::as_bytes(std::span(values)), after(kAnswerLimit));
    };
}

}  // namespace

RankLoader::RankLoader(const WorkerOptions& options, ThreadPool& pool)
    : options_(options), pool_(pool), memoryLimit_(options.memoryLimit != 0 ? options.memoryLimit : availableMemory()) {
    if (options_.modelPath.empty()) return;
    file_ = std::make_unique<ModelFile>(options_.modelPath);
    fileId_ = weightsId(*file_);
}

/// True if the worker's own file describes the model of the setup. Its content is still to be compared.
bool RankLoader::isOwnFile(const ClusterSetup& setup) const {
    if (!file_ || fileId_ != setup.modelId) return false;
    ClusterSetup own;
    describeModel(*file_, makeArchitecture(file_->config()), own);
    return modelToJson(own) == modelToJson(setup);
}

/// Architecture and plan of the setup, without weights. Refuses what this worker cannot be.
std::unique_ptr<LoadedRank> RankLoader::plan(const ClusterSetup& setup, int rank, const std::string& peer) const {
    auto planned = std::make_unique<LoadedRank>();
    planned->arch = makeArchitecture(setup.config);
    const int unit = cutUnit(planned->arch, [&](const std::string& tensor) { return setup.typeOf(tensor); });
    planned->plan = makeShardPlan(planned->arch, setup.nodes, setup.placement, setup.expertUse, unit);
    if (planned->plan.hash() != setup.planHash)
        throw ProtocolError("{}: its plan for {} ranks is not what this worker computes", peer, planned->plan.nRanks());
    if (setup.limits.maxPositions > planned->arch.maxPositions)
        throw ProtocolError("{}: it wants {} positions, the model has {}", peer, setup.limits.maxPositions,
                            planned->arch.maxPositions);
    checkFrames(planned->arch, planned->plan, setup.limits, embeddingType(setup), setup.wire);
    const std::vector<TensorInfo> tensors = describeTensors(planned->arch, setup.weightType, setup.exceptions);
    const Described described(tensors);
    checkTensors(planned->arch, described, peer);
    const MemoryNeed need = memoryNeed(planned->arch, planned->plan, rank, described, setup.limits);
    if (need.total() > memoryLimit_)
        throw ProtocolError("{}: its rank {} needs {} MB (weights {}, KV cache {}, buffers {}), this worker has {}",
                            peer, rank, need.total() >> 20, need.weights >> 20, need.kv >> 20, need.buffers >> 20,
                            memoryLimit_ >> 20);
    return planned;
}

/// In the cache folder; in memory if there is no room.
std::unique_ptr<SliceStore> RankLoader::openStore(std::vector<TensorInfo> tensors, uint64_t key,
                                                  const std::vector<TensorSlice>& slices, bool inFolder) const {
    if (inFolder && !options_.cacheDir.empty()) try {
            return std::make_unique<SliceStore>(tensors, slices, key, options_.cacheDir, options_.cacheLimit);
        } catch (const ConfigError& error) {
            options_.log(fmt::format("the weights are not kept for the next start: {}", error.what()));
        }
    return std::make_unique<SliceStore>(std::move(tensors), slices, key, "");
}

/// Tells the root what is here already, by its content ("": nothing), and hears whether that is what its file holds.
bool RankLoader::isAccepted(const std::string& digest, const Dialogue& root) const {
    sendFrame(root.line, root.session, FrameType::Holdings, nlohmann::json{{"digest", digest}}.dump(),
              after(kAnswerLimit));
    const Frame frame = receiveFrame(root.line, root.session, {FrameType::Holdings}, after(kVerdictLimit));
    const nlohmann::json verdict = parseJson(frame.text());
    if (!verdict.is_object() || !verdict.contains("accepted") || !verdict["accepted"].is_boolean())
        throw ProtocolError("{}: a damaged answer to what is here", root.line.peer());
    const bool accepted = verdict["accepted"].get<bool>();
    if (!accepted && !digest.empty())
        options_.log(
            fmt::format("root {} has other weights under this model's name: receiving them", root.line.peer()));
    return accepted;
}

LoadedRank& RankLoader::load(const ClusterSetup& setup, int rank, const Dialogue& root) {
    std::unique_ptr<LoadedRank> next = plan(setup, rank, root.line.peer());
    const std::vector<TensorSlice> slices = rankSlices(next->arch, next->plan, rank);
    const std::string model = modelToJson(setup);
    const uint64_t modelKey = XXH3_64bits_withSeed(model.data(), model.size(), setup.modelId);
    next->key = slicesKey(modelKey ^ setup.planHash, slices);
    const auto kind = options_.secret ? SliceDigests::Kind::Sha256 : SliceDigests::Kind::Xxh128;
    size_t before = 0;  // bytes of earlier passes over the weights
    const auto tell = progressTo(root);
    const auto progress = [&](size_t done, size_t total) { tell(before + done, before + total); };
    const auto digestOf = [&](const TensorSource& source) {
        size_t total = 0;
        for (const TensorSlice& slice : slices)
            total += static_cast<size_t>(slice.rows()) * storedBytes(source.info(slice.name).dtype, slice.cols());
        std::string digest = SliceDigests(source, kind).of(slices, &pool_, [&](size_t n) { progress(n, total); });
        before += total;
        return digest;
    };
    const auto open = [&](bool inFolder) {
        return openStore(describeTensors(next->arch, setup.weightType, setup.exceptions), slicesKey(modelKey, slices),
                         slices, inFolder);
    };

    if (loaded_ && loaded_->key == next->key && isAccepted(loaded_->digest, root)) {
        sendFrame(root.line, root.session, FrameType::Ready, "", after(kAnswerLimit));
        return *loaded_;
    }
    const bool refused = loaded_ && loaded_->key == next->key;
    loaded_.reset();  // its memory is needed now
    std::unique_ptr<SliceStore> store;
    if (!refused) {
        const bool ownFile = isOwnFile(setup);
        if (file_ && !ownFile)
            options_.log(fmt::format("{} is not the root's model: receiving its weights", file_->path()));
        if (!ownFile) store = open(true);
        if (!store || store->complete())
            next->digest = store ? digestOf(*store) : digestOf(static_cast<const TensorSource&>(*file_));
    }
    if (refused || !isAccepted(next->digest, root)) {
        // Another worker may put its own slices there again at any time: those are not for this one.
        for (const bool inFolder : {true, true, false}) {
            if (!store) store = open(inFolder);
            if (!store->complete()) break;
            store->forget();
            store.reset();
        }
        const std::string notKept = receiveSlices(root.line, root.session, *store);
        if (!notKept.empty()) options_.log(fmt::format("the weights are not kept for the next start: {}", notKept));
        next->digest = digestOf(*store);
    }
    next->source = std::move(store);

    next->backend = options_.makeBackend(pool_);
    const TensorSource& source = next->source ? *next->source : *file_;
    checkTensors(next->arch, source, root.line.peer());
    next->weights = loadWeights(next->arch, next->plan, rank, source, *next->backend, pool_, progress);
    loaded_ = std::move(next);
    options_.log(fmt::format("rank {} of {}: {} MB of weights loaded", rank, loaded_->plan.nRanks(),
                             storedWeightBytes(loaded_->arch, loaded_->plan, rank, source) >> 20));
    sendFrame(root.line, root.session, FrameType::Ready, "", after(kAnswerLimit));
    return *loaded_;
}

}  // namespace dllama
