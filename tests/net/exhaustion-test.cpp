// A worker whose threads, descriptors or places for callers run out, by callers that never say a word.
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "child-process.hpp"
#include "cluster/cluster-links.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// A worker that may have little more than it has when it starts: "files" or "memory" (in which threads' stacks count).
int limitedWorkerMain(const std::string& what) {
    ChildProcess::endWithParent();
    WorkerOptions options;
    options.address = {"127.0.0.1", 0};
    options.makeBackend = cpuBackend;
    options.log = [](const std::string& line) {
        fmt::print("{}\n", line);
        std::fflush(stdout);
    };
    Worker worker(std::move(options));
    rlimit limit{};
    if (what == "files") {
        limit.rlim_cur = limit.rlim_max = ChildProcess::nOpenFilesOf(::getpid()) + 12;
        ::setrlimit(RLIMIT_NOFILE, &limit);
    } else {
        size_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        limit.rlim_cur = limit.rlim_max = pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE)) + (100 << 20);
        ::setrlimit(RLIMIT_AS, &limit);
    }
    fmt::print("{}\n", worker.port());
    std::fflush(stdout);
    worker.run();
    return 0;
}

/// A root that can start one thread more, perhaps: it greets its workers one after the other.
int limitedRootMain(int nWorkers, char** ports) {
    ChildProcess::endWithParent();
    ClusterLinks::Options options;
    for (int i = 0; i < nWorkers; i++) options.workers.push_back({"127.0.0.1", std::stoi(ports[i])});
    options.log = [](const std::string&) {};
    ClusterLinks links(std::move(options));
    size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const size_t bytes = pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE)) + (12 << 20);  // a stack has 8 MB
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_AS, &limit);
    links.connectControl(milliseconds(5000), true);
    links.connectData();
    fmt::print("{} workers\n", links.links().size());
    return 0;
}

/// Connects and keeps silent, from one of this machine's addresses; from 127.0.0.1 if it has no others.
Socket silentCaller(const Address& worker, int host = 1) {
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in from{};
    from.sin_family = AF_INET;
    from.sin_addr.s_addr = htonl(0x7f000000u + static_cast<uint32_t>(host));
    if (::bind(socket.fd(), reinterpret_cast<const sockaddr*>(&from), sizeof from) != 0) return {};
    sockaddr_in to = from;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(worker.port));
    ::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&to), sizeof to);
    return socket;
}

class Exhaustion : public testing::Test {
  protected:
    Exhaustion() {
        writeTinyModel(path, tinyConfig("glm4"), DType::F32);
        options.wire = Wire::F32;
    }
    /// How long a root takes until it has its answer.
    milliseconds timeOfRoot(const Address& worker, milliseconds wait) {
        ClusterOptions o = options;
        o.workers = {worker};
        o.wait = wait;
        const Clock::time_point begin = Clock::now();
        RootUnderTest root(path, o);
        EXPECT_EQ(root.greedy({1, 2, 3}, 3).size(), 3u);
        EXPECT_EQ(root.forward->nodes().size(), 2u);
        return std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
    }

    TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    ClusterOptions options;
};

double processorSeconds(pid_t pid) {
    std::ifstream stat(fmt::format("/proc/{}/stat", pid));
    std::string word;
    double ticks = 0.0;
    for (int i = 1; i <= 15 && stat >> word; i++)
        if (i >= 14) ticks += std::stod(word);
    return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

TEST_F(Exhaustion, WithoutThreadsOrDescriptorsAWorkerWaitsAndGoesOn) {
    for (const std::string what : {"files", "memory"}) {
#ifdef DLLAMA_SANITIZED
        if (what == "memory") continue;  // sanitizers reserve more than any limit
#endif
        ChildProcess process({"--limited-worker", what});
        const Address address{"127.0.0.1", std::stoi(process.readLine())};
        std::vector<Socket> callers;
        for (int i = 0; i < 64; i++) callers.push_back(silentCaller(address));
        const double before = processorSeconds(process.pid());
        std::this_thread::sleep_for(seconds(1));
        EXPECT_LT(processorSeconds(process.pid()) - before, 0.5) << what << ": it spins";
        EXPECT_LT(timeOfRoot(address, seconds(10)), seconds(6)) << what;
        EXPECT_EQ(process.kill(), SIGKILL) << what << ": it had ended by itself";
    }
}

TEST_F(Exhaustion, WithoutThreadsARootGoesOn) {
#ifdef DLLAMA_SANITIZED
    GTEST_SKIP() << "sanitizers reserve more than any limit";
#endif
    std::vector<std::unique_ptr<WorkerThread>> workers;
    std::vector<std::string> arguments = {"--limited-root"};
    for (int i = 0; i < 6; i++) {
        workers.push_back(std::make_unique<WorkerThread>());
        arguments.push_back(std::to_string(workers.back()->address().port));
    }
    ChildProcess process(arguments);
    EXPECT_EQ(process.readLine(), "6 workers");
}

TEST_F(Exhaustion, SilentCallersDelayNoRoot) {
    WorkerThread worker;
    std::atomic<bool> flooding{true};
    // 80 at any time, who come back when they are sent away.
    std::thread flood([&] {
        std::vector<Socket> callers(80);
        while (flooding)
            for (Socket& caller : callers) {
                char byte = 0;
                if (caller.fd() >= 0 && ::recv(caller.fd(), &byte, 1, MSG_DONTWAIT) < 0) continue;
                caller = silentCaller(worker.address());
                std::this_thread::sleep_for(std::chrono::microseconds(500));
            }
    });
    ASSERT_TRUE(worker.lines.waitFor("it made room for others"));
    for (int i = 0; i < 6; i++) EXPECT_LT(timeOfRoot(worker.address(), seconds(5)), seconds(2)) << "root " << i;
    flooding = false;
    flood.join();
}

TEST_F(Exhaustion, TheAddressWithMostCallersMakesRoom) {
    WorkerThread worker;
    if (silentCaller(worker.address(), 2).fd() < 0) GTEST_SKIP() << "this machine has one loopback address";
    const Socket other = silentCaller(worker.address(), 3);  // the oldest of all
    std::vector<Socket> callers;
    for (int i = 0; i < 200; i++) callers.push_back(silentCaller(worker.address(), 2));
    ASSERT_TRUE(worker.lines.waitFor("it made room for others", 100)) << worker.lines.count("made room");
    char byte = 0;
    EXPECT_EQ(::recv(other.fd(), &byte, 1, MSG_DONTWAIT), -1) << "it was hung up on";
    EXPECT_EQ(worker.lines.count("127.0.0.3"), 0) << worker.lines.all();
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && std::string_view(argv[1]) == "--limited-worker") return dllama::test::limitedWorkerMain(argv[2]);
    if (argc > 2 && std::string_view(argv[1]) == "--limited-root")
        return dllama::test::limitedRootMain(argc - 2, argv + 2);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
