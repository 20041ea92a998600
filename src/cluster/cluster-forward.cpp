#include "cluster/cluster-forward.hpp"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/json.hpp"
#include "cluster/memory-plan.hpp"
#include "cluster/time-limits.hpp"
#include "cluster/weights-id.hpp"
#include "net/frame.hpp"
#include "net/weight-stream.hpp"

namespace dllama {

namespace {

/// Attempts of a start, at which nobody may be missing.
constexpr int kMaxAttempts = 5;
/// Losses of one worker in a row, without a step that succeeds, after which the cluster goes on without it.
constexpr int kMaxLosses = 3;
/// How often a worker that is missing is looked for.
constexpr std::chrono::milliseconds kSearchPause{1000};

/// True if no sequence is being written: a good moment for another plan.
bool isPause(const Batch& batch) {
    std::vector<int> nTokens(batch.nSequences, 0);
    for (const int32_t sequence : batch.sequences) nTokens[sequence]++;
    return std::all_of(nTokens.begin(), nTokens.end(), [](int n) { return n > 1; });
}

}  // namespace

ClusterForward::ClusterForward(const ModelFile& file, const Architecture& arch, Backend& backend, ThreadPool& pool,
                               const DecoderLimits& limits, ClusterOptions options)
    : file_(file),
      arch_(arch),
      backend_(backend),
      pool_(pool),
      limits_(limits),
      options_(std::move(options)),
      digests_(file, options_.secret ? SliceDigests::Kind::Sha256 : SliceDigests::Kind::Xxh128) {
    const size_t nNodes = options_.workers.size() + 1;
    if (!options_.nodeWeights.empty() && options_.nodeWeights.size() != nNodes)
        throw ConfigError("{} node weights for {} nodes (the root is the first)", options_.nodeWeights.size(), nNodes);
    for (size_t i = 0; i < options_.workers.size(); i++)
        for (size_t j = 0; j < i; j++)
            if (options_.workers[i] == options_.workers[j])
                throw ConfigError("worker {} is listed twice", options_.workers[i].text());
    for (const Address& worker : options_.workers)
        if (worker.port == options_.ownPort && isThisMachine(worker.host))
            throw ConfigError("worker {} is the port that this program itself listens on", worker.text());
    describeModel(file, arch, setup_);
    setup_.expertUse = options_.expertUse;
    setup_.limits = limits;
    setup_.wire = options_.wire;
    establish(true);
}

ClusterForward::~ClusterForward() {
    teardown();
}

void ClusterForward::teardown() {
    search_ = {};
    isBack_ = false;
    if (links_) links_->close();
    decoder_.reset();
    deviceCommunicator_.reset();
    communicator_.reset();
    links_.reset();
}

/// Connects and prepares everything for steps. If something breaks on the way it begins anew, at last without the
/// worker that breaks it again and again; if it gives up, nothing stays connected.
void ClusterForward::establish(bool allRequired) {
    const Deadline patience = after(options_.wait);
    for (int attempt = 1;; attempt++) {
        teardown();
        try {
            ClusterLinks::Options options{options_.workers, {},           options_.secret,
                                          options_.silence, options_.log, options_.interrupted};
            if (!allRequired)
                for (const auto& [number, n] : nLosses_)
                    if (n >= kMaxLosses) options.excluded.insert(number);
            if (!options.excluded.empty()) nExclusions_++;
            links_ = std::make_unique<ClusterLinks>(std::move(options));
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(patience - Clock::now());
            links_->connectControl(std::max(left, std::chrono::milliseconds(0)), allRequired);
            absent_ = links_->absent();
            try {
                startSession();
                break;
            } catch (const PeerLost& error) {
                if (allRequired && attempt == kMaxAttempts) throw;
                nLosses_[links_->blamed(error)]++;
                options_.log(fmt::format("starting again: {}", error.what()));
            }
        } catch (...) {
            teardown();
            throw;
        }
    }
    if (absent_.empty()) return;
    try {
        search_ = std::jthread([this](const std::stop_token& ended) { searchAbsent(ended); });
    } catch (const std::system_error& error) {
        options_.log(fmt::format("{} is not looked for: {}", absent_, error.what()));
    }
}

/// Looks for workers that the cluster goes on without, until one of them is back.
void ClusterForward::searchAbsent(const std::stop_token& ended) {
    const std::vector<std::string> here = nodes();
    std::mutex mutex;
    std::condition_variable_any pause;
    std::unique_lock lock(mutex);
    // One that was lost again and again may well answer and be lost again.
    const auto time = kSearchPause * (1 << std::min(nExclusions_, 8));
    while (!pause.wait_for(lock, ended, time, [&] { return ended.stop_requested(); })) {
        for (size_t i = 0; i < options_.workers.size() && !ended.stop_requested(); i++) {
            if (std::find(here.begin(), here.end(), options_.workers[i].text()) != here.end()) continue;
            if (!links_->answers(static_cast<int>(i) + 1)) continue;
            returned_ = options_.workers[i].text();
            isBack_ = true;
            return;
        }
    }
}

/// The plan for those who are there; refuses before anything is sent if it cannot work.
void ClusterForward::makePlan() {
    setup_.nodes = {{options_.nodeWeights.empty() ? 1.0 : options_.nodeWeights[0]}};
    setup_.numbers = {0};
    setup_.addresses = {""};
    std::vector<uint64_t> memory = {options_.memoryLimit};
    std::vector<std::string> names = {"root"};
    double slowest = options_.rootSpeed;
    for (const auto& link : links_->links()) slowest = std::min(slowest, link->node.speed);
    // In steps of a quarter: measurements scatter, and another plan means other slices to send.
    const auto measured = [&](double speed) {
        return slowest > 0.0 ? std::max(1.0, std::round(4.0 * speed / slowest) / 4.0) : 1.0;
    };
    if (options_.measuredWeights) setup_.nodes[0].weight = measured(options_.rootSpeed);
    for (const auto& link : links_->links()) {
        double weight = options_.nodeWeights.empty() ? 1.0 : options_.nodeWeights[link->number];
        if (options_.measuredWeights) weight = measured(link->node.speed);
        setup_.nodes.push_back({weight});
        setup_.numbers.push_back(link->number);
        setup_.addresses.push_back(link->address.text());
        memory.push_back(link->node.memory);
        names.push_back(link->address.text());
    }
    const int unit = cutUnit(arch_, [&](const std::string& tensor) { return setup_.typeOf(tensor); });
    setup_.placement = options_.placement ? *options_.placement : choosePlacement(arch_, setup_.nodes, unit);
    plan_ = planWithinMemory(arch_, setup_.nodes, setup_.placement, setup_.expertUse, file_, limits_, memory, names);
    setup_.planHash = plan_.hash();
    checkFrames(arch_, plan_, limits_, file_.info("token_embedding.weight").dtype, options_.wire);
}

void ClusterForward::startSession() {
    decoder_.reset();
    makePlan();
    chooseCollective();
    links_->connectData();

    // Each worker is prepared in a thread of its own while the root loads what is its.
    const std::string text = setupToJson(setup_);
    if (text.size() > maxPayload(FrameType::Setup))
        throw ConfigError("the setup of this model has {} bytes, the limit is {}", text.size(),
                          maxPayload(FrameType::Setup));
    std::exception_ptr failure;
    const auto prepareAll = [&] {
        try {
            links_->forEach([&](ClusterLinks::Link& link) { prepareWorker(link, text); });
        } catch (...) {
            failure = std::current_exception();
        }
    };
    std::thread workers;
    try {
        workers = std::thread(prepareAll);
    } catch (const std::system_error&) {
        prepareAll();  // no thread is left for it
    }
    const auto join = [&] {
        if (workers.joinable()) workers.join();
    };
    try {
        loadOwn();
    } catch (...) {
        links_->noteLost(0, "the root cannot load its weights");
        join();
        throw;
    }
    join();
    if (failure) std::rethrow_exception(failure);

    TcpCommunicator::Options options;
    options.session = links_->session();
    options.wire = options_.wire;
    std::vector<Connection*> lines = {nullptr};
    for (const auto& link : links_->links()) lines.push_back(link->data.get());
    communicator_ = std::make_unique<TcpCommunicator>(options, lines, backend_);
    stepSeconds_ = 0.0;
    microbatches_ = {};
    if (links_->links().empty()) {
        decoder_ =
            std::make_unique<Decoder>(arch_, plan_, 0, weights_, backend_, *communicator_, limits_, options_.hooks);
        return;
    }
    try {
        links_->sendToAll(FrameType::Start, {});
        cost_ = communicator_->measureLine();
        communicator_->setLineCost(cost_);
        links_->sendToAll(FrameType::Start, std::as_bytes(std::span(&cost_, 1)));
    } catch (const PeerLost& error) {
        links_->rethrowLost(error);
    }
    if (setup_.collectives != Collectives::Tcp) joinDeviceCollective();
    Communicator& collective = deviceCommunicator_ ? *deviceCommunicator_ : *communicator_;
    decoder_ = std::make_unique<Decoder>(arch_, plan_, 0, weights_, backend_, collective, limits_, options_.hooks);
    microbatches_ = MicrobatchPolicy(
        allCpus_ && decoder_->canMicrobatch(), options_.microbatches,
        expectedCollectiveShare(arch_, plan_.nRanks(), pool_.nThreads(), limits_.maxTokens, options_.wire, cost_));
}

/// How the ranks of this session add up.
void ClusterForward::chooseCollective() {
    std::vector<DeviceIdentity> devices = {options_.collectives ? options_.collectives->identity() : DeviceIdentity{}};
    for (const auto& link : links_->links()) devices.push_back(link->node.device);
    CollectivesChoice choice =
        chooseCollectives(options_.collectivesWish, devices, nodes(), options_.secret.has_value());
    if (!deviceFailure_.empty()) choice = {Collectives::Tcp, deviceFailure_};
    allCpus_ = std::all_of(devices.begin(), devices.end(), [](const auto& device) { return device.gpu.empty(); });
    setup_.collectives = choice.how;
    setup_.rendezvous = choice.how == Collectives::Tcp ? "" : options_.collectives->newRendezvous(choice.how);
    if (links_->links().empty() || !options_.collectives) return;
    options_.log(fmt::format("all-reduce {}{}",
                             choice.how == Collectives::Peer   ? "in the GPUs' memory"
                             : choice.how == Collectives::Nccl ? "by NCCL"
                                                               : "through the network",
                             choice.reason.empty() ? "" : fmt::format(" ({})", choice.reason)));
}

/// All ranks are ready and about to do the same.
void ClusterForward::joinDeviceCollective() {
    const CollectiveMember member{setup_.collectives, 0, plan_.nRanks(), setup_.rendezvous};
    try {
        deviceCommunicator_ =
            options_.collectives->join(member, backend_, *communicator_, links_->lostSource().get_token());
    } catch (const PeerLost& error) {
        // Devices may be unable to reach each other where hosts can, behind a firewall, say: the next attempt does
        // without.
        const bool othersFailed = links_->lostSource().stop_requested();
        if (!options_.collectivesWish && (!othersFailed || ++nDeviceFailures_ > 1)) deviceFailure_ = error.what();
        links_->rethrowLost(error);
    }
}

/// The worker's next frame of the one type, as long as it goes on telling of progress.
Frame ClusterForward::awaitProgressing(const ClusterLinks::Link& link, FrameType type) {
    uint64_t most = 0;
    for (Deadline patience = after(options_.stall);;) {
        const Frame frame = receiveFrame(*link.data, links_->session(), {type, FrameType::Progress}, patience);
        if (frame.type == type) return frame;
        uint64_t values[2] = {};
        if (frame.payload.size() != sizeof values)
            throw ProtocolError("{}: a damaged report of progress", link.address.text());
        std::memcpy(values, frame.payload.data(), sizeof values);
        if (values[0] <= most) continue;
        most = values[0];
        patience = after(options_.stall);
    }
}

/// Until the worker has said that it is ready.
void ClusterForward::prepareWorker(const ClusterLinks::Link& link, const std::string& setup) {
    const uint32_t session = links_->session();
    const std::string name = link.address.text();
    sendFrame(*link.data, session, FrameType::Setup, setup, after(kSendLimit));
    const std::vector<TensorSlice> slices = rankSlices(arch_, plan_, link.rank);
    const nlohmann::json holdings = parseJson(awaitProgressing(link, FrameType::Holdings).text());
    const bool understood = holdings.is_object() && holdings.contains("digest") && holdings["digest"].is_string();
    if (!understood) throw ProtocolError("{}: a damaged answer to the setup", name);
    // What a worker has kept is used only if it is, byte by byte, what this root's file holds.
    const std::string digest = holdings["digest"].get<std::string>();
    const bool accepted = !digest.empty() && digest == digests_.of(slices);
    sendFrame(*link.data, session, FrameType::Holdings, nlohmann::json{{"accepted", accepted}}.dump(),
              after(kSendLimit));
    if (accepted) {
        options_.log(fmt::format("{}: its weights are in place", name));
    } else {
        if (!digest.empty())
            options_.log(fmt::format("{}: has other weights under this model's name: sending them", name));
        const size_t total = storedWeightBytes(arch_, plan_, link.rank, file_);
        sendSlices(*link.data, session, file_, slices, [&](size_t done) {
            if (options_.progress) options_.progress(link.rank, name, done, total);
        });
    }
    awaitProgressing(link, FrameType::Ready);
}

void ClusterForward::loadOwn() {
    if (loadedPlan_ == plan_.hash()) return;
    loadedPlan_ = 0;
    weights_ = {};
    const size_t total = storedWeightBytes(arch_, plan_, 0, file_);
    weights_ = loadWeights(arch_, plan_, 0, file_, backend_, pool_, [&](size_t done, size_t) {
        if (options_.progress) options_.progress(0, "root", done, total);
    });
    loadedPlan_ = plan_.hash();
}

void ClusterForward::forward(const Batch& batch, std::vector<float>& best) {
    if (isBack_ && isPause(batch)) {
        rejoining_ = true;
        throw PeerLost(0, "{} is back", returned_);
    }
    if (!microbatches_.decide(batch.nTokens)) return runBatch(batch, best);
    Batch split = batch;
    split.microbatched = true;
    runBatch(split, best);
}

void ClusterForward::runBatch(const Batch& batch, std::vector<float>& best) {
    runStep([&] {
        encodeBatch(batch, encoded_);
        links_->sendToAll(FrameType::Batch, encoded_);
        const Clock::time_point begin = Clock::now();
        const double syncBefore = communicator_->syncSeconds();
        decoder_->forward(batch, best);
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        stepSeconds_ += seconds;
        nLosses_.clear();
        if (!batch.microbatched)
            microbatches_.measured(batch.nTokens, (communicator_->syncSeconds() - syncBefore) / seconds);
    });
}

void ClusterForward::gatherLogits(std::vector<float>& logits) {
    runStep([&] {
        links_->sendToAll(FrameType::Rows, {});
        decoder_->gatherLogits(logits);
    });
}

/// What all ranks do together: a loss gets the heartbeat's words for it.
void ClusterForward::runStep(const std::function<void()>& body) {
    if (!decoder_) throw PeerLost(1, "the cluster could not be put together again");
    try {
        body();
    } catch (const PeerLost& error) {
        links_->rethrowLost(error);
    }
}

void ClusterForward::recover(const PeerLost& lost) {
    if (std::exchange(rejoining_, false)) {
        options_.log(fmt::format("{} is back", returned_));
        nLosses_.clear();
    } else {
        if (links_) nLosses_[links_->blamed(lost)]++;
        options_.log(fmt::format("lost {}", lost.what()));
    }
    const Clock::time_point begin = Clock::now();
    try {
        establish(false);
    } catch (const ConfigError& error) {
        throw PeerLost(lost.rank, "lost {}; without {} {}", lost.what(), absent_, error.what());
    }
    options_.log(fmt::format("computing again on {} nodes after {} ms", plan_.nRanks(),
                             std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count()));
}

Traffic ClusterForward::traffic() const {
    Traffic traffic;
    if (!communicator_) return traffic;
    traffic.syncSeconds = communicator_->syncSeconds();
    for (const auto& link : links_->links()) {
        traffic.sentBytes += link->data->bytesSent();
        traffic.receivedBytes += link->data->bytesReceived();
    }
    return traffic;
}

std::vector<std::optional<NodeStatistics>> ClusterForward::nodeStatistics() const {
    if (!decoder_) return {std::nullopt};
    const SyncStatistics own = communicator_->statistics();
    std::vector<std::optional<NodeStatistics>> nodes = links_->askStatistics();
    nodes[0] = NodeStatistics{stepSeconds_ - own.seconds, own};
    return nodes;
}

std::vector<std::string> ClusterForward::nodes() const {
    std::vector<std::string> names = {"root"};
    if (links_)
        for (const auto& link : links_->links()) names.push_back(link->address.text());
    return names;
}

}  // namespace dllama
