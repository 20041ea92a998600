#include "cluster/worker.hpp"

#include "base/cpu-features.hpp"
#include "base/printable.hpp"
#include "cluster/time-limits.hpp"

namespace dllama {

Worker::Worker(WorkerOptions options)
    : options_(std::move(options)), pool_(options_.nThreads), loader_(options_, pool_) {
    node_.memory = loader_.memoryLimit();
    node_.threads = options_.nThreads;
    node_.speed = options_.speed;
    node_.cpu = cpuFeatureNames();
    if (options_.collectives) node_.device = options_.collectives->identity();
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
    if (session_) session_->stop("this worker is being stopped");
    changed_.notify_all();
}

/// A caller that knows the secret: takes it as the root, as a rank of the running session, or not at all.
void Worker::receive(Caller caller) {
    const Deadline deadline = after(kAnswerLimit);
    const Hello& hello = caller.hello;
    const bool isRoot = hello.purpose == Hello::Purpose::Control;
    std::string refusal;
    bool busy = isRoot;
    std::shared_ptr<WorkerSession> session;
    {
        const std::lock_guard lock(mutex_);
        if (isRoot && session_ && session_->hello().session == hello.session &&
            session_->hello().server != hello.server) {
            refusal =
                fmt::format("this worker is listed twice, as number {} and {}", session_->hello().server, hello.server);
            busy = false;
        } else if (isRoot && (session_ || stopping_))
            refusal = "this worker serves another root";
        else if (isRoot)
            session = session_ = std::make_shared<WorkerSession>(hello, options_);
        else if (!session_ || !session_->lacks(hello))
            refusal = "this worker is not in that session";
        else
            session = session_;
    }
    if (!session) {
        refuse(caller, busy, refusal, deadline);
        throw ProtocolError("{}: {}", caller.connection->peer(), refusal);
    }
    try {
        welcome(caller, node_, deadline);
    } catch (...) {
        const std::lock_guard lock(mutex_);
        if (isRoot) session_.reset();
        throw;
    }
    session->attach(std::move(caller));
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
}

/// Waits for a root; null when this worker is to stop.
std::shared_ptr<WorkerSession> Worker::nextSession() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopping_ || (session_ && session_->hasRoot()); });
    return stopping_ ? nullptr : session_;
}

void Worker::run() {
    while (const std::shared_ptr<WorkerSession> session = nextSession()) {
        options_.log(fmt::format("root {} has connected", session->root()));
        std::string reason;
        try {
            session->serve(loader_);
        } catch (const std::exception& error) {
            reason = error.what();
        }
        // What the heartbeat saw comes first: the error is but its consequence.
        const std::string cause = session->abortReason();
        options_.log(fmt::format("the session has ended: {}", printable(cause.empty() ? reason : cause)));
        const std::lock_guard lock(mutex_);
        session_.reset();
    }
}

}  // namespace dllama
