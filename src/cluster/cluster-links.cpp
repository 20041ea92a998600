#include "cluster/cluster-links.hpp"

#include <algorithm>
#include <random>
#include <thread>

#include "base/printable.hpp"
#include "cluster/time-limits.hpp"

namespace dllama {

namespace {

/// Between two attempts to reach a worker; it doubles from one to the other.
constexpr std::chrono::milliseconds kFirstPause{100}, kLongestPause{500};
/// What is mended within this time needs no words.
constexpr std::chrono::milliseconds kQuietLimit{1000};
/// When a line breaks its cause may be about to arrive on the other one.
constexpr std::chrono::milliseconds kCauseLimit{100};
constexpr std::chrono::milliseconds kStatisticsLimit{1000};
/// For a worker that is missing: whoever waits for the end of the search must not wait for long.
constexpr std::chrono::milliseconds kAskLimit{500};
/// Greetings of one worker that may fail for another reason than that nobody is there.
constexpr int kMaxDamaged = 3;
/// A worker may need so long to notice that its last session has ended: it finishes the layer it is in.
constexpr std::chrono::seconds kBusyLimit{30};

uint64_t newSession() {
    std::random_device random;
    return (uint64_t{random()} << 32) | random();
}

}  // namespace

ClusterLinks::ClusterLinks(Options options)
    : options_(std::move(options)), session_(newSession()), watch_(options_.silence) {
    for (size_t i = 0; i < options_.workers.size(); i++) {
        auto link = std::make_unique<Link>();
        link->address = options_.workers[i];
        link->number = link->rank = static_cast<int>(i) + 1;
        links_.push_back(std::move(link));
    }
    Heartbeat::Options beats;
    beats.session = session();
    beats.silence = options_.silence;
    heartbeat_ = std::make_unique<Heartbeat>(
        beats, [this](int node, const std::string& reason) { noteLost(node, reason); },
        [this](int node, const Frame& frame) { hear(node, frame); });
}

ClusterLinks::~ClusterLinks() {
    close();
}

void ClusterLinks::close() {
    heartbeat_.reset();
    lostSource_.request_stop();  // nobody would tell a device any more that it waits in vain
}

void ClusterLinks::dialControl(Link& link, std::chrono::milliseconds wait) {
    const Deadline begin = Clock::now(), patience = begin + wait, busyPatience = patience + kBusyLimit;
    if (options_.excluded.contains(link.number)) {
        link.failure = fmt::format("{}, which was lost again and again", link.address.text());
        return;
    }
    bool told = false;
    int nDamaged = 0;
    for (auto pause = kFirstPause;; pause = std::min(2 * pause, kLongestPause)) {
        try {
            const Hello hello{Hello::Purpose::Control, session_, 0, link.number};
            Greeted greeted = dial(link.address, hello, secret(), after(kDialLimit));
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
            // Another secret, which stays; or a byte that got damaged on its way, which does not.
            link.busy = false;
            link.failure = error.what();
            if (++nDamaged == kMaxDamaged) return;
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
}

void ClusterLinks::connectControl(std::chrono::milliseconds wait, bool allRequired) {
    forEach([&](Link& link) { dialControl(link, wait); });
    std::string failures;
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

bool ClusterLinks::answers(int number) const {
    try {
        // A session that ends as soon as it has begun.
        dial(options_.workers[number - 1], {Hello::Purpose::Control, newSession(), 0, number}, secret(),
             after(kAskLimit));
        return true;
    } catch (const Error&) {
        return false;
    }
}

void ClusterLinks::connectData() {
    forEach([&](Link& link) {
        const Hello hello{Hello::Purpose::Data, session_, 0, link.number};
        Greeted greeted = dial(link.address, hello, secret(), after(kDialLimit));
        const std::lock_guard lock(mutex_);
        link.data = std::move(greeted.connection);
        if (lost_) throw PeerLost(link.rank, "{}", lost_->reason);  // noteLost() had no data line to end yet
    });
}

void ClusterLinks::forEach(const std::function<void(Link&)>& body) {
    std::vector<std::thread> threads;
    std::vector<std::exception_ptr> errors(links_.size());
    const auto run = [&](size_t i) {
        try {
            body(*links_[i]);
        } catch (const ConnectionError& error) {
            errors[i] = std::make_exception_ptr(PeerLost(links_[i]->rank, "{}", error.what()));
            noteLost(links_[i]->number, error.what());
        } catch (const ProtocolError& error) {
            errors[i] = std::make_exception_ptr(PeerLost(links_[i]->rank, "{}", error.what()));
            noteLost(links_[i]->number, error.what());
        } catch (const std::exception& error) {
            errors[i] = std::current_exception();
            noteLost(links_[i]->number, error.what());
        }
    };
    threads.reserve(links_.size());
    for (size_t i = 0; i < links_.size(); i++) try {
            threads.emplace_back(run, i);
        } catch (const std::system_error&) {
            run(i);  // no thread is left for it
        }
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

void ClusterLinks::sendToAll(FrameType type, std::span<const std::byte> payload) {
    for (const auto& link : links_) try {
            sendFrame(*link->data, session(), type, payload, after(kSendLimit));
        } catch (const ConnectionError& error) {
            throw PeerLost(link->rank, "{}", error.what());
        }
}

void ClusterLinks::noteLost(int node, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    noteLostLocked(node, reason);
}

void ClusterLinks::noteLostLocked(int node, const std::string& reason) {
    if (!lost_) lost_ = Loss{node, reason};
    lostSource_.request_stop();
    for (const auto& link : links_)
        if (link->data) link->data->shutdown();
    changed_.notify_all();
}

/// Called by the heartbeat: what a worker says on its control line.
void ClusterLinks::hear(int node, const Frame& frame) {
    std::unique_lock lock(mutex_);
    const auto link = std::find_if(links_.begin(), links_.end(), [&](const auto& l) { return l->number == node; });
    if (link == links_.end()) return;
    if (frame.type == FrameType::Statistics) {
        if (static_cast<size_t>((*link)->rank) < told_.size()) told_[(*link)->rank] = statisticsFromJson(frame.text());
        changed_.notify_all();
        return;
    }
    if (frame.type == FrameType::Lines) return hearLines(node, frame);
    noteLostLocked(node, fmt::format("{}: {}", (*link)->address.text(), printable(frame.text())));
}

std::string ClusterLinks::nameOf(int node) const {
    return node == 0 ? "the root" : options_.workers.at(node - 1).text();
}

/// A worker tells how much its data lines have carried. Under the mutex.
void ClusterLinks::hearLines(int node, const Frame& frame) {
    const std::optional<std::vector<LineEnd>> lines = decodeLines(frame.payload);
    if (!lines) return noteLostLocked(node, fmt::format("{}: a damaged report of its lines", nameOf(node)));
    std::vector<LineEnd> own;
    for (const auto& link : links_)
        if (link->data)
            own.push_back(
                {link->number, link->data->isWaiting(), link->data->bytesSent(), link->data->bytesReceived()});
    const Clock::time_point now = Clock::now();
    std::optional<LineWatch::Silent> silent = watch_.report(0, own, now);
    if (!silent) silent = watch_.report(node, *lines, now);
    if (!silent) return;
    const bool known = silent->from >= 0 && silent->from <= static_cast<int>(options_.workers.size());
    const int blamed = silent->to != 0 ? silent->to : silent->from;
    noteLostLocked(blamed, fmt::format("{}: the data line from {} is silent: {} bytes have not arrived for {} ms",
                                       nameOf(silent->to), known ? nameOf(silent->from) : "a node that does not exist",
                                       silent->missing, silent->time.count()));
}

int ClusterLinks::blamed(const PeerLost& error) {
    const std::lock_guard lock(mutex_);
    if (lost_ && lost_->number > 0) return lost_->number;
    for (const auto& link : links_)
        if (link->rank == error.rank) return link->number;
    return links_.empty() ? 0 : links_[0]->number;
}

void ClusterLinks::rethrowLost(const PeerLost& error) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kCauseLimit, [&] { return lost_.has_value(); })) throw PeerLost(error);
    int rank = error.rank;
    for (const auto& link : links_)
        if (link->number == lost_->number) rank = link->rank;
    throw PeerLost(rank, "{}", lost_->reason);
}

std::vector<std::optional<NodeStatistics>> ClusterLinks::askStatistics() {
    std::unique_lock lock(mutex_);
    told_.assign(links_.size() + 1, std::nullopt);
    lock.unlock();
    for (const auto& link : links_) heartbeat_->send(link->number, FrameType::Statistics, "");
    lock.lock();
    changed_.wait_for(lock, kStatisticsLimit, [&] {
        return lost_ || std::all_of(told_.begin() + 1, told_.end(), [](const auto& node) { return node.has_value(); });
    });
    return told_;
}

}  // namespace dllama
