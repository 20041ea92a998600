#include "cluster/cluster-forward.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>

#include "base/json.hpp"
#include "base/printable.hpp"
#include "net/frame.hpp"
#include "net/weight-stream.hpp"

namespace dllama {

namespace {

/// A worker that runs is there at once; one that is frozen or cut off is given up after this.
constexpr std::chrono::milliseconds kDialLimit{2000};
/// Between two attempts; it doubles from one to the other.
constexpr std::chrono::milliseconds kFirstPause{100}, kLongestPause{500};
/// What is mended within this time needs no words.
constexpr std::chrono::milliseconds kQuietLimit{1000};
/// When a line breaks its cause may be about to arrive on the other one.
constexpr std::chrono::milliseconds kCauseLimit{100};
constexpr std::chrono::milliseconds kStatisticsLimit{1000};
/// When prompts go in microbatches: batches of so many tokens, of which one in so many stays whole, and from which
/// share of time in collectives on. On two cores a share of 0.18 lost 5% in microbatches, 0.63 gained 43%.
constexpr int kMinMicrobatchTokens = 32, kMeasureEvery = 16;
constexpr double kWorthMicrobatching = 0.25;
/// What a thread of a fast processor (AVX-512 VNNI) multiplies and adds in a prompt, in a microsecond. With a slower
/// one the first batch may go in microbatches in vain; then collectives have been measured.
constexpr double kProductsPerUs = 200'000.0;
/// A worker may need so long to notice that its last session has ended: it finishes the layer it is in.
constexpr std::chrono::seconds kBusyLimit{30};
constexpr std::chrono::seconds kSendLimit{60};
/// Checking a large cache file or laying out weights takes minutes on a slow disk; heartbeats watch the node meanwhile.
constexpr std::chrono::minutes kLoadLimit{60};
constexpr int kMaxAttempts = 5;

uint64_t newSession() {
    std::random_device random;
    return (uint64_t{random()} << 32) | random();
}

}  // namespace

/// The root's two lines to a worker.
struct ClusterForward::Link {
    Address address;
    int number = 0;  // its place in --workers, from 1
    int rank = 0;    // among those that take part
    std::unique_ptr<Connection> control, data;
    NodeInfo node;
    std::string failure;  // why there is no connection
    bool busy = false;
};

ClusterForward::ClusterForward(const ModelFile& file, const Architecture& arch, Backend& backend, ThreadPool& pool,
                               const DecoderLimits& limits, ClusterOptions options)
    : file_(file), arch_(arch), backend_(backend), pool_(pool), limits_(limits), options_(std::move(options)) {
    const size_t nNodes = options_.workers.size() + 1;
    if (!options_.nodeWeights.empty() && options_.nodeWeights.size() != nNodes)
        throw ConfigError("{} node weights for {} nodes (the root is the first)", options_.nodeWeights.size(), nNodes);
    describeModel(file, arch, setup_);
    setup_.expertUse = options_.expertUse;
    setup_.limits = limits;
    setup_.wire = options_.wire;
    establish(options_.wait, true);
}

ClusterForward::~ClusterForward() {
    teardown();
}

void ClusterForward::teardown() {
    heartbeat_.reset();
    lostSource_.request_stop();  // nobody would tell a device any more that it waits in vain
    decoder_.reset();
    deviceCommunicator_.reset();
    communicator_.reset();
    links_.clear();
    const std::lock_guard lock(mutex_);
    lost_.reset();
}

/// Connects and prepares everything for steps. If something breaks on the way it begins anew; if it gives up, nothing
/// stays connected.
void ClusterForward::establish(std::chrono::milliseconds wait, bool allRequired) {
    for (int attempt = 1;; attempt++) {
        teardown();
        try {
            connectControl(wait, allRequired);
            try {
                startSession();
                return;
            } catch (const PeerLost& error) {
                if (attempt == kMaxAttempts) throw;
                options_.log(fmt::format("starting again: {}", error.what()));
            }
        } catch (...) {
            teardown();
            throw;
        }
    }
}

/// Control lines to all workers, or, if not all are required, to those that answer within `wait`.
void ClusterForward::connectControl(std::chrono::milliseconds wait, bool allRequired) {
    session_ = newSession();
    {
        const std::lock_guard lock(mutex_);
        lostSource_ = {};
    }
    for (size_t i = 0; i < options_.workers.size(); i++) {
        auto link = std::make_unique<Link>();
        link->address = options_.workers[i];
        link->number = link->rank = static_cast<int>(i) + 1;
        links_.push_back(std::move(link));
    }
    Heartbeat::Options beats;
    beats.session = static_cast<uint32_t>(session_);
    beats.silence = options_.silence;
    heartbeat_ = std::make_unique<Heartbeat>(
        beats, [this](int node, const std::string& reason) { noteLost(node, reason); },
        [this](int node, const Frame& frame) { hear(node, frame); });
    const Secret* secret = options_.secret ? &*options_.secret : nullptr;
    const Deadline begin = Clock::now(), patience = begin + wait, busyPatience = patience + kBusyLimit;
    forEachLink([&](Link& link) {
        bool told = false;
        for (auto pause = kFirstPause;; pause = std::min(2 * pause, kLongestPause)) {
            try {
                const Hello hello{Hello::Purpose::Control, session_, 0, link.number};
                Greeted greeted = dial(link.address, hello, secret, after(kDialLimit));
                link.control = std::move(greeted.connection);
                link.node = greeted.node;
                heartbeat_->add({link.number, link.control.get()});
                return;
            } catch (const Refused& refused) {
                link.busy = refused.busy;
                link.failure = refused.what();
                if (!refused.busy) return;
            } catch (const ConnectionError& error) {
                link.busy = false;
                link.failure = error.what();
            } catch (const ProtocolError& error) {
                link.failure = error.what();
                return;
            }
            if (options_.interrupted && options_.interrupted()) return;
            const std::chrono::duration<double> left = (link.busy ? busyPatience : patience) - Clock::now();
            if (left.count() <= 0.0) return;
            if (!told && Clock::now() - begin > kQuietLimit) {
                options_.log(fmt::format("{}; trying for {:.0f} s", link.failure, left.count()));
                told = true;
            }
            std::this_thread::sleep_for(pause);
        }
    });
    std::string failures;
    absent_.clear();
    int firstAbsent = 0;
    for (const auto& link : links_) {
        if (link->control) continue;
        if (firstAbsent == 0) firstAbsent = link->rank;
        failures += fmt::format("{}{}", failures.empty() ? "" : "; ", link->failure);
        absent_ += fmt::format("{}{}", absent_.empty() ? "" : ", ", link->address.text());
    }
    if (options_.interrupted && options_.interrupted())
        throw Interrupted("interrupted while connecting to the workers");
    if (firstAbsent == 0) return;
    if (allRequired) throw PeerLost(firstAbsent, "{}", failures);
    options_.log(fmt::format("going on without {}", failures));
    const std::lock_guard lock(mutex_);
    std::erase_if(links_, [](const auto& link) { return !link->control; });
    for (size_t i = 0; i < links_.size(); i++) links_[i]->rank = static_cast<int>(i) + 1;
}

/// The plan for those who are there; refuses before anything is sent if it cannot work.
void ClusterForward::makePlan() {
    setup_.nodes = {{options_.nodeWeights.empty() ? 1.0 : options_.nodeWeights[0]}};
    setup_.numbers = {0};
    setup_.addresses = {""};
    std::vector<uint64_t> memory = {options_.memoryLimit};
    std::vector<std::string> names = {"root"};
    double slowest = options_.rootSpeed;
    for (const auto& link : links_) slowest = std::min(slowest, link->node.speed);
    // In steps of a quarter: measurements scatter, and another plan means other slices to send.
    const auto measured = [&](double speed) {
        return slowest > 0.0 ? std::max(1.0, std::round(4.0 * speed / slowest) / 4.0) : 1.0;
    };
    if (options_.measuredWeights) setup_.nodes[0].weight = measured(options_.rootSpeed);
    for (const auto& link : links_) {
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
    chooseHow();
    const uint32_t session = static_cast<uint32_t>(session_);
    const Secret* secret = options_.secret ? &*options_.secret : nullptr;
    forEachLink([&](Link& link) {
        const Hello hello{Hello::Purpose::Data, session_, 0, link.number};
        Greeted greeted = dial(link.address, hello, secret, after(kDialLimit));
        const std::lock_guard lock(mutex_);
        link.data = std::move(greeted.connection);
        if (lost_) throw PeerLost(*lost_);  // noteLost() had no data line to end yet
    });

    // Each worker is prepared in a thread of its own while the root loads what is its.
    const std::string text = setupToJson(setup_);
    if (text.size() > maxPayload(FrameType::Setup))
        throw ConfigError("the setup of this model has {} bytes, the limit is {}", text.size(),
                          maxPayload(FrameType::Setup));
    std::exception_ptr failure;
    std::thread workers([&] {
        try {
            forEachLink([&](Link& link) { prepareWorker(link, text); });
        } catch (...) {
            failure = std::current_exception();
        }
    });
    try {
        loadOwn();
    } catch (...) {
        noteLost(0, "the root cannot load its weights");
        workers.join();
        throw;
    }
    workers.join();
    if (failure) std::rethrow_exception(failure);

    TcpCommunicator::Options options;
    options.session = session;
    options.wire = options_.wire;
    std::vector<Connection*> lines = {nullptr};
    for (const auto& link : links_) lines.push_back(link->data.get());
    communicator_ = std::make_unique<TcpCommunicator>(options, lines, backend_);
    stepSeconds_ = 0.0;
    nPromptBatches_ = 0;
    if (links_.empty()) {
        decoder_ = std::make_unique<Decoder>(arch_, plan_, 0, weights_, backend_, *communicator_, limits_);
        return;
    }
    try {
        for (const auto& link : links_) sendFrame(*link->data, session, FrameType::Start, "", after(kSendLimit));
        cost_ = communicator_->measureLine();
        communicator_->setLineCost(cost_);
        syncShare_ = expectedSyncShare();
        for (const auto& link : links_)
            sendFrame(*link->data, session, FrameType::Start, std::as_bytes(std::span(&cost_, 1)), after(kSendLimit));
    } catch (const ConnectionError& error) {
        rethrowLost(PeerLost(1, "{}", error.what()));
    } catch (const PeerLost& error) {
        rethrowLost(error);
    }
    if (setup_.collectives != Collectives::Tcp) joinDeviceCollective();
    Communicator& collective = deviceCommunicator_ ? *deviceCommunicator_ : *communicator_;
    decoder_ = std::make_unique<Decoder>(arch_, plan_, 0, weights_, backend_, collective, limits_);
}

/// How the ranks of this session add up.
void ClusterForward::chooseHow() {
    std::vector<DeviceIdentity> devices = {options_.collectives ? options_.collectives->identity() : DeviceIdentity{}};
    for (const auto& link : links_) devices.push_back(link->node.device);
    CollectivesChoice choice =
        chooseCollectives(options_.collectivesWish, devices, nodes(), options_.secret.has_value());
    if (!deviceFailure_.empty()) choice = {Collectives::Tcp, deviceFailure_};
    allCpus_ = std::all_of(devices.begin(), devices.end(), [](const auto& device) { return device.gpu.empty(); });
    setup_.collectives = choice.how;
    setup_.rendezvous = choice.how == Collectives::Tcp ? "" : options_.collectives->newRendezvous(choice.how);
    if (links_.empty() || !options_.collectives) return;
    options_.log(fmt::format("sums {}{}",
                             choice.how == Collectives::Peer   ? "in the GPUs' memory"
                             : choice.how == Collectives::Nccl ? "by NCCL"
                                                               : "through the network",
                             choice.reason.empty() ? "" : fmt::format(" ({})", choice.reason)));
}

/// All ranks are ready and about to do the same.
void ClusterForward::joinDeviceCollective() {
    const CollectiveMember member{setup_.collectives, 0, plan_.nRanks(), setup_.rendezvous};
    try {
        deviceCommunicator_ = options_.collectives->join(member, backend_, *communicator_, lostSource_.get_token());
    } catch (const PeerLost& error) {
        // Devices may be unable to meet where hosts can, behind a firewall, say: the next attempt does without.
        const bool othersFailed = lostSource_.stop_requested();
        if (!options_.collectivesWish && (!othersFailed || ++nDeviceFailures_ > 1)) deviceFailure_ = error.what();
        rethrowLost(error);
    }
}

/// Until the worker has said that it is ready.
void ClusterForward::prepareWorker(Link& link, const std::string& setup) {
    const uint32_t session = static_cast<uint32_t>(session_);
    const std::string name = link.address.text();
    sendFrame(*link.data, session, FrameType::Setup, setup, after(kSendLimit));
    const Frame answer = receiveFrame(*link.data, session, {FrameType::Holdings}, after(kLoadLimit));
    const nlohmann::json holdings = parseJson(answer.text());
    if (!holdings.is_object() || !holdings.contains("complete") || !holdings["complete"].is_boolean())
        throw ProtocolError("{}: a damaged answer to the setup", name);
    if (holdings["complete"].get<bool>()) {
        options_.log(fmt::format("{}: its weights are in place", name));
    } else {
        const std::vector<TensorSlice> slices = rankSlices(arch_, plan_, link.rank);
        const size_t total = storedWeightBytes(arch_, plan_, link.rank, file_);
        sendSlices(*link.data, session, file_, slices, [&](size_t done) {
            if (options_.progress) options_.progress(link.rank, name, done, total);
        });
    }
    for (;;) {
        const Frame frame =
            receiveFrame(*link.data, session, {FrameType::Ready, FrameType::Progress}, after(kLoadLimit));
        if (frame.type == FrameType::Ready) return;
    }
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
    if (!isWorthMicrobatching(batch)) return runBatch(batch, best);
    Batch split = batch;
    split.microbatched = true;
    runBatch(split, best);
}

void ClusterForward::runBatch(const Batch& batch, std::vector<float>& best) {
    runStep([&] {
        encodeBatch(batch, encoded_);
        sendToAll(FrameType::Batch, encoded_);
        const Clock::time_point begin = Clock::now();
        const double syncBefore = communicator_->syncSeconds();
        decoder_->forward(batch, best);
        const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
        stepSeconds_ += seconds;
        nLosses_ = 0;
        if (batch.nTokens >= kMinMicrobatchTokens && !batch.microbatched)
            syncShare_ = (communicator_->syncSeconds() - syncBefore) / seconds;
    });
}

/// Of a prompt, before one has been seen.
double ClusterForward::expectedSyncShare() const {
    const ModelConfig& c = arch_.config;
    double products = 0.0;  // of a token
    for (const TensorDecl& decl : declareTensors(arch_)) {
        if (decl.isWeight && decl.layer >= 0)
            products += activeShare(c, decl) * static_cast<double>(decl.rows) * static_cast<double>(decl.cols);
    }
    const double computeUs = products / plan_.nRanks() / (kProductsPerUs * pool_.nThreads());
    const size_t bytes = wireBytes(options_.wire, static_cast<size_t>(limits_.maxTokens) * c.hiddenSize);
    const double allReduceUs = TcpCommunicator::allReduceUs(cost_, plan_.nRanks(), bytes) / limits_.maxTokens;
    const double syncUs = 2.0 * c.nLayers * allReduceUs;
    return syncUs / (syncUs + computeUs);
}

/// Two halves read the weights twice, and what sends and adds takes time from the threads that compute: worth it where
/// the collectives take longer than that. How long they take, whole batches show: the second one of the session, and
/// one in kMeasureEvery from there on.
bool ClusterForward::isWorthMicrobatching(const Batch& batch) {
    if (batch.nTokens < kMinMicrobatchTokens || !allCpus_ || !decoder_ || !decoder_->canMicrobatch()) return false;
    if (options_.microbatches) return *options_.microbatches;
    return ++nPromptBatches_ % kMeasureEvery != 2 && syncShare_ > kWorthMicrobatching;
}

void ClusterForward::gatherLogits(std::vector<float>& logits) {
    runStep([&] {
        sendToAll(FrameType::Rows, {});
        decoder_->gatherLogits(logits);
    });
}

void ClusterForward::sendToAll(FrameType type, std::span<const std::byte> payload) {
    for (const auto& link : links_) try {
            sendFrame(*link->data, static_cast<uint32_t>(session_), type, payload, after(kSendLimit));
        } catch (const ConnectionError& error) {
            throw PeerLost(link->rank, "{}", error.what());
        }
}

/// What all ranks do together: a loss gets the heartbeat's words for it.
void ClusterForward::runStep(const std::function<void()>& body) {
    if (!decoder_) throw PeerLost(1, "the cluster could not be put together again");
    try {
        body();
    } catch (const PeerLost& error) {
        rethrowLost(error);
    }
}

void ClusterForward::recover(const PeerLost& lost) {
    if (++nLosses_ > kMaxAttempts) {
        nLosses_ = 0;
        throw PeerLost(lost.rank, "{}: it was lost in {} attempts at the same step", lost.what(), kMaxAttempts);
    }
    options_.log(fmt::format("lost {}", lost.what()));
    const Clock::time_point begin = Clock::now();
    try {
        establish(options_.wait, false);
    } catch (const ConfigError& error) {
        throw PeerLost(lost.rank, "lost {}; without {} {}", lost.what(), absent_, error.what());
    }
    options_.log(fmt::format("computing again on {} nodes after {} ms", plan_.nRanks(),
                             std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count()));
}

/// Called by the heartbeat: every operation of the session fails from now on.
void ClusterForward::noteLost(int node, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (!lost_) lost_ = PeerLost(node, "{}", reason);
    lostSource_.request_stop();
    for (const auto& link : links_)
        if (link->data) link->data->shutdown();
    changed_.notify_all();
}

/// Called by the heartbeat: what a worker says on its control line.
void ClusterForward::hear(int node, const Frame& frame) {
    std::unique_lock lock(mutex_);
    const auto link = std::find_if(links_.begin(), links_.end(), [&](const auto& l) { return l->number == node; });
    if (link == links_.end()) return;
    if (frame.type == FrameType::Statistics) {
        if (static_cast<size_t>((*link)->rank) < told_.size()) told_[(*link)->rank] = statisticsFromJson(frame.text());
        changed_.notify_all();
        return;
    }
    const std::string reason = fmt::format("{}: {}", (*link)->address.text(), printable(frame.text()));
    lock.unlock();
    noteLost(node, reason);
}

/// What the heartbeat found out is the cause, if it found out anything.
void ClusterForward::rethrowLost(const PeerLost& error) {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kCauseLimit, [&] { return lost_.has_value(); })) throw PeerLost(*lost_);
    throw PeerLost(error);
}

/// Calls body for each link in a thread of its own. A ConnectionError becomes PeerLost; the first error is rethrown.
void ClusterForward::forEachLink(const std::function<void(Link&)>& body) {
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> errors(links_.size());
    for (size_t i = 0; i < links_.size(); i++)
        threads.emplace_back([&, i] {
            try {
                body(*links_[i]);
            } catch (const ConnectionError& error) {
                errors[i] = std::make_exception_ptr(PeerLost(links_[i]->rank, "{}", error.what()));
                noteLost(links_[i]->number, error.what());
            } catch (const std::exception& error) {
                errors[i] = std::current_exception();
                noteLost(links_[i]->number, error.what());
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors) {
        if (!error) continue;
        try {
            std::rethrow_exception(error);
        } catch (const PeerLost& lost) {
            rethrowLost(lost);
        }
    }
}

Traffic ClusterForward::traffic() const {
    Traffic traffic;
    if (!communicator_) return traffic;
    traffic.syncSeconds = communicator_->syncSeconds();
    for (const auto& link : links_) {
        traffic.sentBytes += link->data->bytesSent();
        traffic.receivedBytes += link->data->bytesReceived();
    }
    return traffic;
}

std::vector<std::optional<NodeStatistics>> ClusterForward::nodeStatistics() const {
    std::unique_lock lock(mutex_);
    told_.assign(links_.size() + 1, std::nullopt);
    if (!decoder_) return told_;
    const SyncStatistics own = communicator_->statistics();
    told_[0] = NodeStatistics{stepSeconds_ - own.seconds, own};
    lock.unlock();
    for (const auto& link : links_) heartbeat_->send(link->number, FrameType::Statistics, "");
    lock.lock();
    changed_.wait_for(lock, kStatisticsLimit, [&] {
        return lost_ || std::all_of(told_.begin(), told_.end(), [](const auto& node) { return node.has_value(); });
    });
    return told_;
}

std::vector<std::string> ClusterForward::nodes() const {
    std::vector<std::string> names = {"root"};
    for (const auto& link : links_) names.push_back(link->address.text());
    return names;
}

}  // namespace dllama
