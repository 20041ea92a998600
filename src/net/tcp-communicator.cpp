#include "net/tcp-communicator.hpp"

#include <algorithm>
#include <cstring>

namespace dllama {

namespace {

/// However a collective ends, the backend's threads are done with it.
struct PrefetchEnd {
    Backend& backend;
    ~PrefetchEnd() { backend.endPrefetch(); }
};

constexpr size_t kBlock = 32;
constexpr size_t kLatest = 4096;
/// What a rank sends for one measurement: of latency to each peer, of bandwidth to all of them together.
constexpr size_t kSmallProbe = 128, kLargeProbes = 65536;
constexpr int kSmallTimes = 50, kLargeTimes = 5;

double oneShotUs(const LineCost& cost, int nRanks, size_t bytes) {
    return cost.latencyUs + (nRanks - 1.0) * static_cast<double>(bytes) / cost.bytesPerUs;
}
double twoStepsUs(const LineCost& cost, int nRanks, size_t bytes) {
    return 2.0 * (cost.latencyUs + (nRanks - 1.0) * static_cast<double>(bytes) / nRanks / cost.bytesPerUs);
}

}  // namespace

TcpCommunicator::TcpCommunicator(const Options& options, std::vector<Connection*> peers, Backend& backend)
    : options_(options), peers_(std::move(peers)), backend_(backend), out_(peers_.size()), in_(peers_.size()) {
    DLLAMA_CHECK(options.rank >= 0 && options.rank < nRanks() && peers_[options.rank] == nullptr);
}

TcpCommunicator::~TcpCommunicator() {
    const std::lock_guard lock(pendingMutex_);
    if (pending_ != PendingAllReduce::Asked) return;
    for (Connection* peer : peers_)
        if (peer != nullptr) peer->shutdown();
}

void TcpCommunicator::allReduce(const StepInputs& step, Activations& x) {
    if (nRanks() == 1) return;
    values_.resize(static_cast<size_t>(step.nTokens) * x.cols);
    backend_.download(x, step.nTokens, values_.data());
    const PrefetchEnd end{backend_};
    const Deadline begin = Clock::now();
    reduce(prefetch_);
    countCollective(begin);
    backend_.uploadActivations(values_.data(), step.nTokens, x);
}

void TcpCommunicator::startAllReduce(const StepInputs& step, Activations& x) {
    DLLAMA_CHECK(overlaps() && pending_ == PendingAllReduce::Nothing);
    values_.resize(static_cast<size_t>(step.nTokens) * x.cols);
    backend_.download(x, step.nTokens, values_.data());
    if (!pendingThread_.joinable())
        pendingThread_ = std::jthread([this](const std::stop_token& closing) { serveAllReduces(closing); });
    {
        const std::lock_guard lock(pendingMutex_);
        pending_ = PendingAllReduce::Asked;
    }
    pendingChanged_.notify_all();
}

void TcpCommunicator::waitAllReduce(const StepInputs& step, Activations& x) {
    const Deadline begin = Clock::now();
    {
        std::unique_lock lock(pendingMutex_);
        DLLAMA_CHECK(pending_ != PendingAllReduce::Nothing);
        pendingChanged_.wait(lock, [&] { return pending_ == PendingAllReduce::Done; });
        pending_ = PendingAllReduce::Nothing;
        if (pendingError_) std::rethrow_exception(std::exchange(pendingError_, nullptr));
    }
    countCollective(begin);
    backend_.uploadActivations(values_.data(), step.nTokens, x);
}

void TcpCommunicator::serveAllReduces(const std::stop_token& closing) {
    std::unique_lock lock(pendingMutex_);
    while (pendingChanged_.wait(lock, closing, [&] { return pending_ == PendingAllReduce::Asked; })) {
        lock.unlock();
        std::exception_ptr error;
        try {
            reduce({});
        } catch (...) {
            error = std::current_exception();
        }
        lock.lock();
        pendingError_ = error;
        pending_ = PendingAllReduce::Done;
        pendingChanged_.notify_all();
    }
}

void TcpCommunicator::reduce(const std::function<bool()>& idle) {
    const size_t n = values_.size();
    if (oneShotIsFaster(cost_, nRanks(), wireBytes(options_.wire, n)))
        reduceOneShot(values_.data(), n, idle);
    else
        reduceScatterGather(values_.data(), n, idle);
}

void TcpCommunicator::reduceOneShot(float* values, size_t n, const std::function<bool()>& idle) {
    const size_t bytes = wireBytes(options_.wire, n);
    const std::span<std::byte> mine = outFrame(rank(), FrameType::Part, bytes);
    encodeWire(options_.wire, values, n, mine.data() + kFrameHeaderBytes);
    for (int r = 0; r < nRanks(); r++)
        if (r != rank()) inFrame(r, bytes);
    exchange(
        FrameType::Part, [&](int) { return mine; }, idle);

    std::fill_n(values, n, 0.0f);
    for (int r = 0; r < nRanks(); r++)
        addWire(options_.wire, (r == rank() ? out_[r] : in_[r]).data() + kFrameHeaderBytes, n, values);
}

void TcpCommunicator::reduceScatterGather(float* values, size_t n, const std::function<bool()>& idle) {
    const Part own = partOf(rank(), n);
    // Each rank's part of the vector goes to that rank, which adds it up ...
    for (int r = 0; r < nRanks(); r++) {
        const Part part = partOf(r, n);
        const std::span<std::byte> frame = outFrame(r, FrameType::Part, wireBytes(options_.wire, part.size()));
        encodeWire(options_.wire, values + part.begin, part.size(), frame.data() + kFrameHeaderBytes);
        if (r != rank()) inFrame(r, wireBytes(options_.wire, own.size()));
    }
    exchange(
        FrameType::Part, [&](int r) { return std::span<std::byte>(out_[r]); }, idle);
    std::fill_n(values + own.begin, own.size(), 0.0f);
    for (int r = 0; r < nRanks(); r++)
        addWire(options_.wire, (r == rank() ? out_[r] : in_[r]).data() + kFrameHeaderBytes, own.size(),
                values + own.begin);

    // ... and sends the result to all.
    const std::span<std::byte> result = outFrame(rank(), FrameType::Part, wireBytes(options_.wire, own.size()));
    encodeWire(options_.wire, values + own.begin, own.size(), result.data() + kFrameHeaderBytes);
    for (int r = 0; r < nRanks(); r++)
        if (r != rank()) inFrame(r, wireBytes(options_.wire, partOf(r, n).size()));
    exchange(
        FrameType::Part, [&](int) { return result; }, idle);
    std::fill_n(values, n, 0.0f);
    for (int r = 0; r < nRanks(); r++) {
        const Part part = partOf(r, n);
        addWire(options_.wire, (r == rank() ? out_[r] : in_[r]).data() + kFrameHeaderBytes, part.size(),
                values + part.begin);
    }
}

void TcpCommunicator::gatherRows(std::span<const float> mine, int nRows, std::span<const int> colsOfRank, float* all) {
    DLLAMA_CHECK(static_cast<int>(colsOfRank.size()) == nRanks());
    const Deadline begin = Clock::now();
    const uint32_t sequence = ++sequence_;
    transfers_.clear();
    if (rank() != 0) {
        const std::span<std::byte> frame = outFrame(0, FrameType::Rows, mine.size_bytes());
        std::memcpy(frame.data() + kFrameHeaderBytes, mine.data(), mine.size_bytes());
        writeHeader({options_.session, sequence, FrameType::Rows, 0, static_cast<uint32_t>(mine.size_bytes())}, frame);
        sealFrame(frame);
        transfers_.push_back({.rank = 0, .connection = peers_[0], .out = frame});
        exchangeFrames(transfers_, Clock::now() + options_.timeout);
        countCollective(begin);
        return;
    }
    int width = 0;
    for (int cols : colsOfRank) width += cols;
    for (int r = 1; r < nRanks(); r++) {
        const size_t bytes = sizeof(float) * nRows * colsOfRank[r];
        transfers_.push_back(
            {.rank = r,
             .connection = peers_[r],
             .in = inFrame(r, bytes),
             .expected = {options_.session, sequence, FrameType::Rows, 0, static_cast<uint32_t>(bytes)}});
    }
    if (!transfers_.empty()) exchangeFrames(transfers_, Clock::now() + options_.timeout);
    int column = 0;
    for (int r = 0; r < nRanks(); column += colsOfRank[r++]) {
        const std::byte* rows =
            r == 0 ? reinterpret_cast<const std::byte*>(mine.data()) : in_[r].data() + kFrameHeaderBytes;
        const size_t bytes = sizeof(float) * colsOfRank[r];
        for (int row = 0; row < nRows && bytes > 0; row++)
            std::memcpy(all + static_cast<size_t>(row) * width + column, rows + row * bytes, bytes);
    }
    countCollective(begin);
}

LineCost TcpCommunicator::measureLine() {
    const auto probe = [&](size_t bytes, int times) {
        std::vector<double> us;
        for (int i = 0; i < times; i++) {
            const Deadline begin = Clock::now();
            const std::span<std::byte> mine = outFrame(rank(), FrameType::Probe, bytes);
            for (int r = 0; r < nRanks(); r++)
                if (r != rank()) inFrame(r, bytes);
            exchange(FrameType::Probe, [&](int) { return mine; });
            us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
        }
        std::nth_element(us.begin(), us.begin() + us.size() / 2, us.end());
        return us[us.size() / 2];
    };
    LineCost cost;
    cost.latencyUs = probe(kSmallProbe, kSmallTimes);
    const size_t large = kLargeProbes / peers_.size();
    const double largeUs = probe(large, kLargeTimes);
    cost.bytesPerUs = (nRanks() - 1.0) * static_cast<double>(large) / std::max(largeUs - cost.latencyUs, 1.0);
    sentBefore_ = totalSent();
    receivedBefore_ = totalReceived();
    return cost;
}

bool TcpCommunicator::oneShotIsFaster(const LineCost& cost, int nRanks, size_t bytes) {
    return oneShotUs(cost, nRanks, bytes) <= twoStepsUs(cost, nRanks, bytes);
}

double TcpCommunicator::allReduceUs(const LineCost& cost, int nRanks, size_t bytes) {
    return std::min(oneShotUs(cost, nRanks, bytes), twoStepsUs(cost, nRanks, bytes));
}

SyncStatistics TcpCommunicator::statistics() const {
    SyncStatistics result;
    result.bytesSent = totalSent() - sentBefore_;
    result.bytesReceived = totalReceived() - receivedBefore_;
    const std::lock_guard lock(mutex_);
    result.nCollectives = nCollectives_;
    result.seconds = seconds_;
    std::vector<float> us = latestUs_;
    if (us.empty()) return result;
    std::sort(us.begin(), us.end());
    result.p50Us = us[us.size() / 2];
    result.p99Us = us[us.size() * 99 / 100];
    return result;
}

uint64_t TcpCommunicator::totalSent() const {
    uint64_t total = 0;
    for (const Connection* peer : peers_) total += peer != nullptr ? peer->bytesSent() : 0;
    return total;
}

uint64_t TcpCommunicator::totalReceived() const {
    uint64_t total = 0;
    for (const Connection* peer : peers_) total += peer != nullptr ? peer->bytesReceived() : 0;
    return total;
}

/// Values [begin, end) that a rank adds up: whole blocks, as even as they divide.
TcpCommunicator::Part TcpCommunicator::partOf(int rank, size_t n) const {
    const size_t blocks = (n + kBlock - 1) / kBlock;
    const auto at = [&](size_t r) { return std::min(n, blocks * r / peers_.size() * kBlock); };
    return {at(rank), at(rank + 1)};
}

std::span<std::byte> TcpCommunicator::outFrame(int slot, FrameType type, size_t payload) {
    DLLAMA_CHECK(payload <= maxPayload(type));
    out_[slot].resize(kFrameHeaderBytes + payload);
    return out_[slot];
}

std::span<std::byte> TcpCommunicator::inFrame(int rank, size_t payload) {
    in_[rank].resize(kFrameHeaderBytes + payload);
    return in_[rank];
}

template <typename Out>
void TcpCommunicator::exchange(FrameType type, const Out& out, const std::function<bool()>& idle) {
    const uint32_t sequence = ++sequence_;
    transfers_.clear();
    const std::byte* sealed = nullptr;
    // Starting behind oneself spreads the load: no rank is everybody's first.
    for (int i = 1; i < nRanks(); i++) {
        const int r = (rank() + i) % nRanks();
        const std::span<std::byte> frame = out(r);
        // One frame may go to all.
        if (frame.data() != sealed) {
            writeHeader({options_.session, sequence, type, 0, static_cast<uint32_t>(frame.size() - kFrameHeaderBytes)},
                        frame);
            sealFrame(frame);
            sealed = frame.data();
        }
        transfers_.push_back({.rank = r,
                              .connection = peers_[r],
                              .out = frame,
                              .in = in_[r],
                              .expected = {options_.session, sequence, type, 0,
                                           static_cast<uint32_t>(in_[r].size() - kFrameHeaderBytes)}});
    }
    exchangeFrames(transfers_, Clock::now() + options_.timeout, idle);
}

void TcpCommunicator::countCollective(Deadline begin) {
    const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    const std::lock_guard lock(mutex_);
    if (latestUs_.size() < kLatest)
        latestUs_.push_back(static_cast<float>(us));
    else
        latestUs_[nCollectives_ % kLatest] = static_cast<float>(us);
    nCollectives_++;
    seconds_ += us * 1e-6;
}

}  // namespace dllama
