#include "cluster/worker-session.hpp"

#include <cstring>

#include "base/printable.hpp"
#include "cluster/memory-plan.hpp"
#include "cluster/time-limits.hpp"
#include "net/frame.hpp"
#include "net/heartbeat.hpp"
#include "net/tcp-communicator.hpp"

namespace dllama {

namespace {

/// Others may still be loading.
constexpr Deadline kNoDeadline = Deadline::max();

/// However steps end, the device must not go on waiting for others: freeing its memory would wait for it.
struct EndOfWaiting {
    std::stop_source& lost;
    ~EndOfWaiting() { lost.request_stop(); }
};

}  // namespace

/// Lets the session's statistics be asked for while its steps are computed.
class WorkerSession::StatisticsScope {
  public:
    StatisticsScope(WorkerSession& session, const TcpCommunicator& communicator) : session_(session) {
        const std::lock_guard lock(session_.mutex_);
        session_.communicator_ = &communicator;
    }
    ~StatisticsScope() {
        const std::lock_guard lock(session_.mutex_);
        session_.communicator_ = nullptr;
    }

  private:
    WorkerSession& session_;
};

WorkerSession::WorkerSession(Hello hello, const WorkerOptions& options)
    : hello_(hello), options_(options), data_(kMaxNodes) {}

bool WorkerSession::lacks(const Hello& hello) const {
    const std::lock_guard lock(mutex_);
    return hello_.session == hello.session && hello_.server == hello.server && !data_[hello.client];
}

void WorkerSession::attach(Caller caller) {
    const std::lock_guard lock(mutex_);
    if (caller.hello.purpose == Hello::Purpose::Control)
        control_ = std::move(caller.connection);
    else
        data_[caller.hello.client] = std::move(caller.connection);
    changed_.notify_all();
}

bool WorkerSession::hasRoot() const {
    const std::lock_guard lock(mutex_);
    return control_ != nullptr;
}

void WorkerSession::abort(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (abortReason_.empty()) abortReason_ = reason;
    lost_.request_stop();
    for (const auto& connection : data_)
        if (connection) connection->shutdown();
    changed_.notify_all();
}

void WorkerSession::stop(const std::string& reason) {
    abort(reason);
    const std::lock_guard lock(mutex_);
    if (control_) control_->shutdown();
}

std::string WorkerSession::abortReason() const {
    const std::lock_guard lock(mutex_);
    return abortReason_;
}

/// As long as it takes: the root may wait for another worker, and that one for its weights. If one of them is lost the
/// heartbeat ends the session.
Connection& WorkerSession::waitForData(int number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return data_[number] || !abortReason_.empty(); });
    if (!abortReason_.empty()) throw ConnectionError("{}", abortReason_);
    return *data_[number];
}

void WorkerSession::serve(RankLoader& loader) {
    Heartbeat::Options beats;
    beats.session = id();
    beats.silence = options_.silence;
    Heartbeat heartbeat(
        beats, [&](int, const std::string& reason) { abort(reason); },
        [&](int, const Frame& frame) {
            if (frame.type == FrameType::Statistics) heartbeat.send(0, FrameType::Statistics, statistics());
        },
        [&] { return encodeLines(lines()); });
    heartbeat.add({0, control_.get()});
    try {
        Connection& root = waitForData(0);
        const Frame frame = receiveFrame(root, id(), {FrameType::Setup}, after(kSetupLimit));
        const ClusterSetup setup = setupFromJson(std::string(frame.text()), root.peer());
        LoadedRank& loaded =
            loader.load(setup, rankOf(setup, hello_.server, root.peer()), {root, id(), lost_.get_token()});
        connectMesh(setup);
        computeSteps(loaded, root, setup);
    } catch (const std::exception& error) {
        heartbeat.send(0, FrameType::Failure, printable(error.what()));
        throw;
    }
}

/// How much each data line has carried.
std::vector<LineEnd> WorkerSession::lines() const {
    const std::lock_guard lock(mutex_);
    std::vector<LineEnd> lines;
    for (int number = 0; number < kMaxNodes; number++)
        if (const auto& c = data_[number])
            lines.push_back({number, c->isWaiting(), c->bytesSent(), c->bytesReceived()});
    return lines;
}

std::string WorkerSession::statistics() const {
    const std::lock_guard lock(mutex_);
    if (communicator_ == nullptr) return {};
    const SyncStatistics sync = communicator_->statistics();
    return statisticsToJson({stepSeconds_ - sync.seconds, sync});
}

/// Nodes connect to those of higher numbers; the root has connected to all.
void WorkerSession::connectMesh(const ClusterSetup& setup) {
    const int own = hello_.server;
    const Secret* secret = options_.secret ? &*options_.secret : nullptr;
    for (size_t r = 1; r < setup.numbers.size(); r++) {
        if (setup.numbers[r] <= own) continue;
        const Hello hello{Hello::Purpose::Data, hello_.session, own, setup.numbers[r]};
        Greeted greeted = dial(parseAddress(setup.addresses[r]), hello, secret, after(kAnswerLimit));
        const std::lock_guard lock(mutex_);
        data_[setup.numbers[r]] = std::move(greeted.connection);
        if (!abortReason_.empty()) throw ConnectionError("{}", abortReason_);
    }
    for (int number : setup.numbers)
        if (number < own) waitForData(number);
}

void WorkerSession::computeSteps(LoadedRank& loaded, Connection& root, const ClusterSetup& setup) {
    const int rank = rankOf(setup, hello_.server, root.peer());
    std::vector<Connection*> peers;
    for (int number : setup.numbers) peers.push_back(data_[number].get());  // none to itself
    TcpCommunicator::Options options;
    options.rank = rank;
    options.session = id();
    options.wire = setup.wire;
    TcpCommunicator communicator(options, peers, *loaded.backend);

    // The root asks for this when all are ready.
    receiveFrame(root, id(), {FrameType::Start}, kNoDeadline);
    communicator.measureLine();
    const Frame start = receiveFrame(root, id(), {FrameType::Start}, after(kSetupLimit));
    LineCost cost;
    if (start.payload.size() != sizeof cost) throw ProtocolError("{}: a damaged start", root.peer());
    std::memcpy(&cost, start.payload.data(), sizeof cost);
    communicator.setLineCost(cost);
    std::unique_ptr<Communicator> device;
    if (setup.collectives != Collectives::Tcp) {
        if (!options_.collectives)
            throw ProtocolError("{}: it wants {} collectives of a CPU", root.peer(),
                                collectivesName(setup.collectives));
        const CollectiveMember member{setup.collectives, rank, loaded.plan.nRanks(), setup.rendezvous};
        device = options_.collectives->join(member, *loaded.backend, communicator, lost_.get_token());
    }
    Communicator& collective = device ? *device : communicator;
    Decoder decoder(loaded.arch, loaded.plan, rank, loaded.weights, *loaded.backend, collective, setup.limits,
                    {options_.trace});
    const EndOfWaiting endOfWaiting{lost_};

    const StatisticsScope statistics(*this, communicator);
    const BatchLimits limits = batchLimits(loaded.arch, setup.limits, embeddingType(setup));
    Batch batch;
    std::vector<float> none;
    for (;;) {
        const Frame frame =
            receiveFrame(root, id(), {FrameType::Batch, FrameType::Rows}, kNoDeadline, limits.maxBytes());
        if (frame.type == FrameType::Batch) decodeBatch(frame.payload, limits, root.peer(), batch);
        const Clock::time_point begin = Clock::now();
        try {
            frame.type == FrameType::Batch ? decoder.forward(batch, none) : decoder.gatherLogits(none);
        } catch (const PeerLost& lost) {
            // The root's line has its own words for it; another rank is known to the root by the address it listens on.
            if (lost.rank == 0) throw;
            throw Error("{} is lost to it ({})", setup.addresses[lost.rank], lost.what());
        }
        stepSeconds_ = stepSeconds_ + std::chrono::duration<double>(Clock::now() - begin).count();
    }
}

}  // namespace dllama
