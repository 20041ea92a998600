#include "cluster/worker.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/cpu-features.hpp"
#include "base/printable.hpp"
#include "base/system-info.hpp"
#include "model/weights.hpp"
#include "net/frame.hpp"
#include "net/heartbeat.hpp"
#include "net/slice-store.hpp"
#include "net/tcp-communicator.hpp"
#include "net/weight-stream.hpp"

namespace dllama {

namespace {

/// A peer whose turn it is, and which has nothing to wait for, answers within this time.
constexpr std::chrono::seconds kSetupLimit{15};
constexpr std::chrono::seconds kAnswerLimit{5};
/// Others may still be loading.
constexpr Deadline kNoDeadline = Deadline::max();

DType embeddingType(const ClusterSetup& setup) {
    return setup.typeOf("token_embedding.weight");
}

/// This node's rank, or an error if it has none.
int rankOf(const ClusterSetup& setup, int number, const std::string& peer) {
    const auto found = std::find(setup.numbers.begin(), setup.numbers.end(), number);
    if (found == setup.numbers.end()) throw ProtocolError("{}: its setup has no node {}", peer, number);
    return static_cast<int>(found - setup.numbers.begin());
}

/// However steps end, the device must not go on waiting for others: freeing its memory would wait for it.
struct EndOfWaiting {
    std::stop_source& lost;
    ~EndOfWaiting() { lost.request_stop(); }
};

}  // namespace

/// From a root's first connection to its last.
struct Worker::Session {
    Hello hello;
    std::unique_ptr<Connection> control;
    std::vector<std::unique_ptr<Connection>> data;  // to the node of each number
    std::string abortReason;                        // why it ended, if it did
    std::stop_source lost;                          // ends what waits on the device
    const TcpCommunicator* communicator = nullptr;  // while steps are computed
    std::atomic<double> stepSeconds{0.0};

    uint32_t id() const { return static_cast<uint32_t>(hello.session); }
};

/// Lets the session's statistics be asked for while its steps are computed.
class Worker::StatisticsScope {
  public:
    StatisticsScope(Worker& worker, Session& session, const TcpCommunicator& communicator)
        : worker_(worker), session_(session) {
        const std::lock_guard lock(worker_.mutex_);
        session_.communicator = &communicator;
    }
    ~StatisticsScope() {
        const std::lock_guard lock(worker_.mutex_);
        session_.communicator = nullptr;
    }

  private:
    Worker& worker_;
    Session& session_;
};

/// One rank's weights and what they refer to.
struct Worker::Loaded {
    uint64_t key = 0;
    Architecture arch;
    ShardPlan plan;
    std::unique_ptr<TensorSource> source;  // null: the worker's own file
    std::unique_ptr<Backend> backend;
    RankWeights weights;
};

Worker::Worker(WorkerOptions options) : options_(std::move(options)), pool_(options_.nThreads) {
    node_.memory = options_.memoryLimit != 0 ? options_.memoryLimit : availableMemory();
    node_.threads = options_.nThreads;
    node_.speed = options_.speed;
    node_.cpu = cpuFeatureNames();
    if (options_.collectives) node_.device = options_.collectives->identity();
    if (!options_.modelPath.empty()) {
        file_ = std::make_unique<ModelFile>(options_.modelPath);
        fileId_ = weightsId(*file_);
    }
    PeerListener::Options listening;
    listening.address = options_.address;
    listening.secret = options_.secret ? &*options_.secret : nullptr;
    listener_ = std::make_unique<PeerListener>(
        listening, [this](Caller caller) { receive(std::move(caller)); }, options_.log);
    if (listener_->isPublic() && !options_.secret && !options_.insecure)
        throw ConfigError(
            "{} can be reached by other machines: give --secret-file, or --insecure to serve anyone in plain text",
            options_.address.text());
}

Worker::~Worker() {
    stop();
    listener_.reset();
}

void Worker::stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (session_) {
        session_->abortReason = "this worker is being stopped";
        session_->lost.request_stop();
        if (session_->control) session_->control->shutdown();
        for (const auto& connection : session_->data)
            if (connection) connection->shutdown();
    }
    changed_.notify_all();
}

/// A caller that knows the secret: takes it as the root, as a rank of the running session, or not at all.
void Worker::receive(Caller caller) {
    const Deadline deadline = after(kAnswerLimit);
    const Hello& hello = caller.hello;
    std::string refusal;
    std::shared_ptr<Session> session;
    {
        const std::lock_guard lock(mutex_);
        if (hello.purpose == Hello::Purpose::Control) {
            if (session_ || stopping_) {
                refusal = "this worker serves another root";
            } else {
                session = session_ = std::make_shared<Session>();
                session->hello = hello;
                session->data.resize(64);
            }
        } else if (!session_ || session_->hello.session != hello.session || session_->hello.server != hello.server ||
                   session_->data[hello.client]) {
            refusal = "this worker is not in that session";
        } else {
            session = session_;
        }
    }
    if (!session) {
        refuse(caller, hello.purpose == Hello::Purpose::Control, refusal, deadline);
        throw ProtocolError("{}: {}", caller.connection->peer(), refusal);
    }
    try {
        welcome(caller, node_, deadline);
    } catch (...) {
        const std::lock_guard lock(mutex_);
        if (hello.purpose == Hello::Purpose::Control) session_.reset();
        throw;
    }
    const std::lock_guard lock(mutex_);
    if (hello.purpose == Hello::Purpose::Control)
        session->control = std::move(caller.connection);
    else
        session->data[hello.client] = std::move(caller.connection);
    changed_.notify_all();
}

void Worker::run() {
    for (;;) {
        std::shared_ptr<Session> session;
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return stopping_ || (session_ && session_->control); });
            if (stopping_) return;
            session = session_;
        }
        options_.log(fmt::format("root {} has connected", session->control->peer()));
        std::string reason;
        try {
            serve(*session);
        } catch (const std::exception& error) {
            reason = error.what();
        }
        const std::lock_guard lock(mutex_);
        // What the heartbeat saw comes first: the error is but its consequence.
        options_.log(fmt::format("the session has ended: {}",
                                 printable(session->abortReason.empty() ? reason : session->abortReason)));
        session_.reset();
    }
}

/// Called by the heartbeat: every operation of the session fails from now on.
void Worker::abort(Session& session, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (session.abortReason.empty()) session.abortReason = reason;
    session.lost.request_stop();
    for (const auto& connection : session.data)
        if (connection) connection->shutdown();
    changed_.notify_all();
}

/// As long as it takes: the root may wait for another worker, and that one for its weights. If one of them is lost the
/// heartbeat ends the session.
Connection& Worker::waitForData(Session& session, int number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return session.data[number] || !session.abortReason.empty() || stopping_; });
    if (!session.abortReason.empty() || stopping_) throw ConnectionError("{}", session.abortReason);
    return *session.data[number];
}

void Worker::serve(Session& session) {
    Heartbeat::Options beats;
    beats.session = session.id();
    beats.silence = options_.silence;
    Heartbeat heartbeat(
        beats, [&](int, const std::string& reason) { abort(session, reason); },
        [&](int, const Frame& frame) {
            if (frame.type == FrameType::Statistics) heartbeat.send(0, FrameType::Statistics, statisticsOf(session));
        });
    heartbeat.add({0, session.control.get()});
    try {
        Connection& root = waitForData(session, 0);
        const Frame frame = receiveFrame(root, session.id(), {FrameType::Setup}, after(kSetupLimit));
        const ClusterSetup setup = setupFromJson(std::string(frame.text()), root.peer());
        load(session, root, setup);
        connectMesh(session, setup);
        computeSteps(session, root, setup);
    } catch (const std::exception& error) {
        heartbeat.send(0, FrameType::Failure, printable(error.what()));
        throw;
    }
}

std::string Worker::statisticsOf(const Session& session) {
    const std::lock_guard lock(mutex_);
    if (session.communicator == nullptr) return {};
    const SyncStatistics sync = session.communicator->statistics();
    return statisticsToJson({session.stepSeconds - sync.seconds, sync});
}

/// In the cache folder; in memory if there is no room.
std::unique_ptr<SliceStore> Worker::openStore(const Architecture& arch, const ClusterSetup& setup,
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

/// Makes loaded_ the rank that the setup asks for.
void Worker::load(Session& session, Connection& root, const ClusterSetup& setup) {
    const int rank = rankOf(setup, session.hello.server, root.peer());
    auto next = std::make_unique<Loaded>();
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
    sendFrame(root, session.id(), FrameType::Holdings, holdings.dump(), after(kAnswerLimit));
    if (missing) {
        const std::string notKept = receiveSlices(root, session.id(), *missing);
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
                sendFrame(root, session.id(), FrameType::Progress, std::as_bytes(std::span(values)),
                          after(kAnswerLimit));
            });
        loaded_ = std::move(next);
        options_.log(fmt::format("rank {} of {}: {} MB of weights loaded", rank, loaded_->plan.nRanks(),
                                 storedWeightBytes(loaded_->arch, loaded_->plan, rank, source) >> 20));
    }
    sendFrame(root, session.id(), FrameType::Ready, "", after(kAnswerLimit));
}

/// Nodes connect to those of higher numbers; the root has connected to all.
void Worker::connectMesh(Session& session, const ClusterSetup& setup) {
    const int own = session.hello.server;
    const Secret* secret = options_.secret ? &*options_.secret : nullptr;
    for (size_t r = 1; r < setup.numbers.size(); r++) {
        if (setup.numbers[r] <= own) continue;
        const Hello hello{Hello::Purpose::Data, session.hello.session, own, setup.numbers[r]};
        Greeted greeted = dial(parseAddress(setup.addresses[r]), hello, secret, after(kSetupLimit));
        const std::lock_guard lock(mutex_);
        session.data[setup.numbers[r]] = std::move(greeted.connection);
        if (!session.abortReason.empty() || stopping_) throw ConnectionError("{}", session.abortReason);
    }
    for (int number : setup.numbers)
        if (number < own) waitForData(session, number);
}

void Worker::computeSteps(Session& session, Connection& root, const ClusterSetup& setup) {
    const int rank = rankOf(setup, session.hello.server, root.peer());
    Loaded& l = *loaded_;
    std::vector<Connection*> peers;
    for (int number : setup.numbers) peers.push_back(session.data[number].get());  // none to itself
    TcpCommunicator::Options options;
    options.rank = rank;
    options.session = session.id();
    options.wire = setup.wire;
    TcpCommunicator communicator(options, peers, *l.backend);

    // The root asks for this when all are ready.
    receiveFrame(root, session.id(), {FrameType::Start}, kNoDeadline);
    communicator.measureLine();
    const Frame start = receiveFrame(root, session.id(), {FrameType::Start}, after(kSetupLimit));
    LineCost cost;
    if (start.payload.size() != sizeof cost) throw ProtocolError("{}: a damaged start", root.peer());
    std::memcpy(&cost, start.payload.data(), sizeof cost);
    communicator.setLineCost(cost);
    std::unique_ptr<Communicator> device;
    if (setup.collectives != Collectives::Tcp) {
        if (!options_.collectives)
            throw ProtocolError("{}: it wants {} collectives of a CPU", root.peer(),
                                collectivesName(setup.collectives));
        const CollectiveMember member{setup.collectives, rank, l.plan.nRanks(), setup.rendezvous};
        device = options_.collectives->join(member, *l.backend, communicator, session.lost.get_token());
    }
    Communicator& collective = device ? *device : communicator;
    Decoder decoder(l.arch, l.plan, rank, l.weights, *l.backend, collective, setup.limits);
    const EndOfWaiting endOfWaiting{session.lost};

    const StatisticsScope statistics(*this, session, communicator);
    const BatchLimits limits = batchLimits(l.arch, setup.limits, embeddingType(setup));
    Batch batch;
    std::vector<float> none;
    for (;;) {
        const Frame frame =
            receiveFrame(root, session.id(), {FrameType::Batch, FrameType::Rows}, kNoDeadline, limits.maxBytes());
        if (frame.type == FrameType::Batch) decodeBatch(frame.payload, limits, root.peer(), batch);
        const Clock::time_point begin = Clock::now();
        try {
            frame.type == FrameType::Batch ? decoder.forward(batch, none) : decoder.gatherLogits(none);
        } catch (const PeerLost& lost) {
            // The root's line has its own words for it; another rank is known to the root by the address it listens on.
            if (lost.rank == 0) throw;
            throw Error("{} is lost to it ({})", setup.addresses[lost.rank], lost.what());
        }
        session.stepSeconds = session.stepSeconds + std::chrono::duration<double>(Clock::now() - begin).count();
    }
}

}  // namespace dllama
