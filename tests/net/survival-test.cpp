// Workers and roots as processes that are killed, frozen and cut off, and what the answer looks like afterwards.
#include <random>

#include "child-process.hpp"
#include "cluster/memory-plan.hpp"
#include "relay.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

using std::chrono::milliseconds;

constexpr const char* kSecret = "c3Vydml2YWwgdGVzdCBzZWNyZXQgMDEyMzQ1Njc4OWFiY2Q=";
constexpr int kAnswer = 40;
/// From the fault to the line in the log.
constexpr milliseconds kDetection{2000};

class Survival : public testing::Test {
  protected:
    Survival() {
        writeTinyModel(path, config, DType::F32);
        prompt = somePrompt(config, 50);
        options.wire = Wire::F32;
        RootUnderTest alone(path, options);
        expected = alone.greedy(prompt, kAnswer);
        options.secret = Secret::parse(kSecret, "test");
        options.wait = milliseconds(5000);
    }
    void connectTo(std::initializer_list<WorkerProcess*> workers) {
        for (const WorkerProcess* worker : workers) options.workers.push_back(worker->address());
    }
    /// Calls `fault` before step `at` (the prompt takes four) and expects the same answer as ever.
    void answerWithFault(RootUnderTest& root, int at, const std::function<void()>& fault) {
        Clock::time_point begin;
        const std::vector<int> tokens = root.greedy(prompt, kAnswer, [&](int step) {
            if (step != at) return;
            begin = Clock::now();
            fault();
        });
        EXPECT_EQ(tokens, expected) << root.lines.all();
        const auto lost = root.lines.when("lost"), again = root.lines.when("computing again");
        ASSERT_TRUE(lost && again) << root.lines.all();
        const auto ms = [&](Clock::time_point t) {
            return std::chrono::duration_cast<milliseconds>(t - begin).count();
        };
        EXPECT_LE(ms(*lost), kDetection.count());
        std::printf("noticed after %d ms, computing again after %d ms\n", static_cast<int>(ms(*lost)),
                    static_cast<int>(ms(*again)));
    }

    TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig("glm4moe");
    std::vector<int> prompt, expected;
    ClusterOptions options;
};

TEST_F(Survival, KilledWorkerComesBack) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    RootUnderTest root(path, options);
    std::thread repair;
    answerWithFault(root, 20, [&] {
        a.process().kill();
        repair = std::thread([&] {
            std::this_thread::sleep_for(milliseconds(200));
            a.start();
        });
    });
    repair.join();
    EXPECT_EQ(root.forward->nodes().size(), 3u);
}

TEST_F(Survival, KilledWorkerStaysAway) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(500);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] { a.process().kill(); });
    EXPECT_EQ(root.forward->nodes(), (std::vector<std::string>{"root", b.address().text()}));
    EXPECT_EQ(root.greedy(prompt, kAnswer), expected);
}

TEST_F(Survival, WaitIsLongerThanTheOthersPatience) {
    // The worker that is left hears nothing of steps for longer than the silence after which it gives a root up.
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(3500);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] { a.process().kill(); });
    EXPECT_EQ(root.forward->nodes().size(), 2u);
    EXPECT_EQ(root.lines.count("starting again"), 0) << root.lines.all();
}

TEST_F(Survival, AllWorkersAreKilled) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(200);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] {
        a.process().kill();
        b.process().kill();
    });
    EXPECT_EQ(root.forward->nodes().size(), 1u);
}

TEST_F(Survival, KilledInPrefill) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(500);
    RootUnderTest root(path, options);
    answerWithFault(root, 2, [&] { b.process().kill(); });
}

TEST_F(Survival, FrozenWorker) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(200);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] { a.process().stop(); });
    EXPECT_EQ(root.forward->nodes().size(), 2u);
    // Once it thaws it notices that its session is over and serves the next root.
    a.process().signal(SIGCONT);
    options.workers = {a.address()};
    options.wait = milliseconds(5000);
    RootUnderTest next(path, options);
    EXPECT_EQ(next.greedy(prompt, kAnswer), expected);
}

TEST_F(Survival, FrozenWorkerThaws) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    RootUnderTest root(path, options);
    std::thread thaw;
    answerWithFault(root, 20, [&] {
        a.process().stop();
        thaw = std::thread([&] {
            std::this_thread::sleep_for(milliseconds(2500));
            a.process().signal(SIGCONT);
        });
    });
    thaw.join();
    EXPECT_EQ(root.forward->nodes().size(), 3u);
}

TEST_F(Survival, CutLine) {
    WorkerProcess a(kSecret), b(kSecret);
    Relay relay(b.address());
    options.workers = {a.address(), relay.address()};
    options.wait = milliseconds(200);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] { relay.cut(); });
    EXPECT_EQ(root.forward->nodes(), (std::vector<std::string>{"root", a.address().text()}));
}

TEST_F(Survival, KilledWhileItsWeightsAreOnTheirWay) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    bool killed = false;
    options.progress = [&](int rank, const std::string&, size_t done, size_t total) {
        if (rank != 1 || killed || done < total / 2) return;
        killed = true;
        a.process().kill();
        a.start();
    };
    RootUnderTest root(path, options);
    EXPECT_TRUE(killed);
    EXPECT_EQ(root.lines.count("starting again"), 1) << root.lines.all();
    EXPECT_EQ(root.greedy(prompt, kAnswer), expected);

    // And while the rest takes over a lost worker's part.
    std::atomic<bool> armed{true};
    WorkerProcess c(kSecret);
    options.workers = {b.address(), c.address()};
    options.wait = milliseconds(200);
    bool replanned = false;
    options.progress = [&](int rank, const std::string& node, size_t, size_t) {
        if (rank == 0 || !replanned || node != b.address().text() || !armed.exchange(false)) return;
        b.process().kill();
    };
    root.forward.reset();
    RootUnderTest second(path, options);
    answerWithFault(second, 20, [&] {
        replanned = true;
        c.process().kill();
    });
    EXPECT_FALSE(armed);
    EXPECT_EQ(second.forward->nodes().size(), 1u);
}

TEST_F(Survival, DataLineThatFallsSilent) {
    // Either direction of one line, while everything else, heartbeats too, goes on.
    for (const bool toWorker : {true, false}) {
        WorkerProcess a(kSecret), b(kSecret);
        Relay relay(b.address());
        options.workers = {a.address(), relay.address()};
        options.wait = milliseconds(200);
        RootUnderTest root(path, options);
        Clock::time_point begin;
        EXPECT_EQ(root.greedy(prompt, kAnswer,
                              [&](int step) {
                                  if (step != 20) return;
                                  begin = Clock::now();
                                  relay.silence(1, toWorker);  // the control line came first
                              }),
                  expected);
        const auto lost = root.lines.when("is silent");
        ASSERT_TRUE(lost) << root.lines.all();
        EXPECT_LE(*lost - begin, milliseconds(3000));
        EXPECT_EQ(root.forward->nodes().size(), 3u) << root.lines.all();
    }
}

TEST_F(Survival, WorkerThatIsBackJoinsAtTheNextPause) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(200);
    RootUnderTest root(path, options);
    answerWithFault(root, 20, [&] { a.process().kill(); });
    EXPECT_EQ(root.forward->nodes().size(), 2u);
    a.start();
    std::this_thread::sleep_for(milliseconds(2500));
    EXPECT_EQ(root.greedy(prompt, kAnswer), expected);
    EXPECT_EQ(root.forward->nodes().size(), 3u) << root.lines.all();
    EXPECT_EQ(root.lines.count("lost "), 1) << root.lines.all();
    EXPECT_EQ(root.lines.count("is back"), 1) << root.lines.all();
}

TEST_F(Survival, WhoStaysAwayIsNamed) {
    WorkerProcess a(kSecret);
    connectTo({&a});
    options.wait = milliseconds(300);
    a.process().kill();
    try {
        RootUnderTest root(path, options);
        FAIL() << "there is no worker";
    } catch (const PeerLost& error) {
        EXPECT_NE(std::string(error.what()).find(a.address().text()), std::string::npos) << error.what();
    }
}

TEST_F(Survival, RestCannotHoldTheModel) {
    WorkerProcess a(kSecret);
    connectTo({&a});
    options.wait = milliseconds(300);
    {
        // A little less than the whole model: root and worker together have room for it.
        RootUnderTest alone(path, ClusterOptions{});
        options.memoryLimit =
            memoryNeed(alone.arch, alone.forward->plan(), 0, alone.file, alone.forward->limits()).total() - 1;
    }
    RootUnderTest root(path, options);
    try {
        root.greedy(prompt, kAnswer, [&](int step) {
            if (step == 20) a.process().kill();
        });
        FAIL() << "the root alone cannot hold the model";
    } catch (const PeerLost& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("without " + a.address().text() + " the model does not fit"), std::string::npos) << text;
    }
    // The next request finds no worker either, and the one after it finds it again.
    EXPECT_THROW(root.greedy(prompt, kAnswer), PeerLost);
    a.start();
    EXPECT_EQ(root.greedy(prompt, kAnswer), expected);
}

TEST_F(Survival, KilledRootsLeaveUsableWorkers) {
    WorkerProcess a(kSecret), b(kSecret);
    std::mt19937 random(5);
    size_t kilobytes[2] = {}, files[2] = {};
    constexpr int kRounds = 20, kWarmUp = 6;
    for (int round = 0; round < kRounds; round++) {
        ChildProcess root({"--root", path, a.address().text(), b.address().text()});
        // Some roots die while they connect, some while weights are on their way, some between two tokens.
        if (round % 2 == 0)
            for (int i = 0; i < 5; i++) ASSERT_NE(root.readLine(), "");
        else
            std::this_thread::sleep_for(milliseconds(random() % 60));
        root.kill();
        if (round != kWarmUp && round != kRounds - 1) continue;
        connectTo({&a, &b});
        RootUnderTest next(path, options);
        EXPECT_EQ(next.greedy(prompt, kAnswer), expected);
        options.workers.clear();
        const int i = round == kWarmUp ? 0 : 1;
        kilobytes[i] = a.process().kilobytes();
        files[i] = a.process().nOpenFiles();
    }
    EXPECT_LE(kilobytes[1], kilobytes[0] + ChildProcess::kGrowthKilobytes);
    EXPECT_LE(files[1], files[0] + 2);
    std::printf("a worker holds %zu kB and %zu files after %d roots, %zu and %zu after %d\n", kilobytes[0], files[0],
                kWarmUp + 1, kilobytes[1], files[1], kRounds);
}

TEST_F(Survival, RandomFaults) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.wait = milliseconds(3000);
    RootUnderTest root(path, options);
    const unsigned seed = std::random_device{}();
    std::printf("seed %u\n", seed);
    std::mt19937 random(seed);
    std::vector<std::thread> repairs;
    for (int round = 0; round < 4; round++) {
        const int at = static_cast<int>(random() % kAnswer);
        const std::vector<int> tokens = root.greedy(prompt, kAnswer, [&](int step) {
            if (step != at) return;
            WorkerProcess& worker = random() % 2 == 0 ? a : b;
            const bool freeze = random() % 3 == 0;
            if (freeze)
                worker.process().stop();
            else
                worker.process().kill();
            repairs.emplace_back([&worker, freeze, pause = milliseconds(random() % 1000)] {
                std::this_thread::sleep_for(pause);
                if (freeze)
                    worker.process().signal(SIGCONT);
                else
                    worker.start();
            });
        });
        for (std::thread& repair : repairs) repair.join();
        repairs.clear();
        ASSERT_EQ(tokens, expected) << "round " << round << "\n" << root.lines.all();
    }
}

/// A batch of so many tokens goes in microbatches, whose all-reduces travel beside the computing: one is lost with its
/// rank.
TEST_F(Survival, FaultsInMicrobatches) {
    const DecoderLimits limits{.maxTokens = 128, .maxOutputs = 4};
    const std::vector<int> longPrompt = somePrompt(config, 240);
    const std::vector<int> alone = RootUnderTest(path, {}, limits).greedy(longPrompt, 4);
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    options.microbatches = true;
    RootUnderTest root(path, options, limits);
    EXPECT_EQ(root.greedy(longPrompt, 4), alone);
    const unsigned seed = std::random_device{}();
    std::printf("seed %u\n", seed);
    std::mt19937 random(seed);
    for (int round = 0; round < 6; round++) {
        std::thread fault([&, pause = std::chrono::microseconds(random() % 20'000)] {
            std::this_thread::sleep_for(pause);
            a.process().kill();
            a.start();
        });
        const std::vector<int> tokens = root.greedy(longPrompt, 4);
        fault.join();
        ASSERT_EQ(tokens, alone) << "round " << round << "\n" << root.lines.all();
    }
}

TEST_F(Survival, RecoveriesLeaveNothingBehind) {
    WorkerProcess a(kSecret), b(kSecret);
    connectTo({&a, &b});
    RootUnderTest root(path, options);
    size_t kilobytes = 0, files = 0;
    constexpr int kRounds = 12, kWarmUp = 4;
    for (int round = 0; round < kRounds; round++) {
        root.greedy(prompt, 4, [&](int step) {
            if (step != 4) return;
            a.process().kill();
            a.start();
        });
        if (round != kWarmUp) continue;
        kilobytes = ChildProcess::kilobytesOf(::getpid());
        files = ChildProcess::nOpenFilesOf(::getpid());
    }
    EXPECT_EQ(root.lines.count("computing again on 3 nodes"), kRounds) << root.lines.all();
    EXPECT_LE(ChildProcess::kilobytesOf(::getpid()), kilobytes + ChildProcess::kGrowthKilobytes);
    EXPECT_EQ(ChildProcess::nOpenFilesOf(::getpid()), files);
    EXPECT_EQ(root.greedy(prompt, kAnswer), expected);
}

/// A root that computes until it is killed and prints a line for each step.
int rootMain(char** argv) {
    ChildProcess::endWithParent();
    ClusterOptions options;
    options.wire = Wire::F32;
    options.secret = Secret::parse(kSecret, "test");
    options.workers = {parseAddress(argv[3]), parseAddress(argv[4])};
    RootUnderTest root(argv[2], options);
    const std::vector<int> prompt = somePrompt(root.arch.config, 50);
    for (;;)
        root.greedy(prompt, kAnswer, [](int step) {
            fmt::print("{}\n", step);
            std::fflush(stdout);
        });
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    if (argc == 6 && std::string_view(argv[1]) == "--worker") return dllama::test::WorkerProcess::main(argv);
    if (argc == 5 && std::string_view(argv[1]) == "--root") return dllama::test::rootMain(argv);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
