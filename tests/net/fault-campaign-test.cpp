// Random faults of every kind in every phase of a cluster's life, with TLS and in plain text: nothing hangs or crashes,
// and the text is that of one rank alone. DLLAMA_FAULTS says how many (the tests of every push: 24), DLLAMA_SEED
// repeats them.
#include <cstdlib>
#include <map>
#include <random>

#include "child-process.hpp"
#include "relay.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr const char* kSecret = "ZmF1bHQgY2FtcGFpZ24gc2VjcmV0IDAxMjM0NTY3ODlhYg==";
constexpr int kAnswer = 24, kPromptSteps = 4;
/// Beyond what a recovery waits for lost workers.
constexpr milliseconds kWait{500}, kLongest{10'000};

enum class Fault { Kill, Stop, Cut, Delay, Corrupt, Truncate, SilenceToWorker, SilenceFromWorker };
constexpr const char* kFaultNames[] = {
    "kill", "stop", "cut", "delay", "corrupt", "truncate", "silence to worker", "silence from worker"};
enum class Phase { Handshake, Weights, Prefill, Decode, Recovery };
constexpr const char* kPhaseNames[] = {"handshake", "weights", "prefill", "decode", "recovery"};

/// Both lines' greetings have passed when so many bytes have; then a worker's weights follow.
constexpr size_t kGreetingBytes = 3'000, kWeightBytes = 300'000;

struct Times {
    std::vector<double> ms;
    void print(const std::string& name) {
        std::sort(ms.begin(), ms.end());
        std::printf("%-52s %5zu  median %6.0f ms  longest %6.0f ms\n", name.c_str(), ms.size(), ms[ms.size() / 2],
                    ms.back());
    }
};

/// One fault in the life of a root and two workers; the second worker is behind a relay, and it is the one that
/// suffers.
class Round {
  public:
    Round(std::mt19937& random, bool tls)
        : fault(static_cast<Fault>(random() % std::size(kFaultNames))),
          phase(static_cast<Phase>(random() % std::size(kPhaseNames))),
          name_(fmt::format("{}, {}, {}", kFaultNames[static_cast<int>(fault)], kPhaseNames[static_cast<int>(phase)],
                            tls ? "TLS" : "plain")),
          line_(static_cast<int>(random() % 2)),
          bytes_(phase == Phase::Handshake ? random() % kGreetingBytes : kGreetingBytes + random() % kWeightBytes),
          step_(phase == Phase::Prefill ? static_cast<int>(random() % kPromptSteps)
                                        : kPromptSteps + static_cast<int>(random() % (kAnswer - 1))),
          pause_(random() % 300'000),
          a_(tls ? kSecret : ""),
          b_(tls ? kSecret : ""),
          relay_(b_.address()) {}

    const std::string& name() const { return name_; }
    std::vector<Address> workers() const { return {a_.address(), relay_.address()}; }

    void strike() {
        if (fault == Fault::Kill) b_.process().kill();
        if (fault == Fault::Stop) b_.process().stop();
        if (fault == Fault::Cut) relay_.cut();
        if (fault == Fault::Delay) relay_.disturb(Relay::Fault::Delay);
        if (fault == Fault::Corrupt) relay_.disturb(Relay::Fault::Corrupt);
        if (fault == Fault::Truncate) relay_.disturb(Relay::Fault::Truncate);
        if (fault == Fault::SilenceToWorker) relay_.silence(line_, true);
        if (fault == Fault::SilenceFromWorker) relay_.silence(line_, false);
    }

    /// The whole life. Returns how it ended.
    std::string run(const std::string& path, const ClusterOptions& options, const std::vector<int>& prompt,
                    const std::vector<int>& expected) {
        begin_ = Clock::now();
        std::atomic<bool> started{false};
        if (phase == Phase::Handshake || phase == Phase::Weights)
            later_ = std::thread([&] {
                while (relay_.nPassed() < bytes_ && !started) std::this_thread::sleep_for(microseconds(20));
                begin_ = Clock::now();
                strike();
            });
        std::unique_ptr<RootUnderTest> root;
        std::string end;
        try {
            root = std::make_unique<RootUnderTest>(path, options);
        } catch (const PeerLost& error) {
            // A start needs all workers: it ends with the name of the one that is missing.
            EXPECT_NE(std::string(error.what()).find(relay_.address().text()), std::string::npos) << error.what();
            end = "the start is refused";
        }
        started = true;
        if (root) {
            const std::vector<int> tokens = root->greedy(prompt, kAnswer, [&](int step) { beforeStep(step); });
            EXPECT_EQ(tokens, expected) << root->lines.all();
            const bool lost = root->lines.count("lost ") + root->lines.count("starting again") > 0;
            end = !lost ? "no loss" : root->forward->nodes().size() == 3 ? "recovered with all" : "went on without it";
        }
        if (later_.joinable()) later_.join();
        took = std::chrono::duration<double, std::milli>(Clock::now() - begin_).count();
        EXPECT_LT(took, (kWait + kLongest).count()) << (root ? root->lines.all() : end);
        if (fault == Fault::Stop) b_.process().signal(SIGCONT);
        root.reset();
        EXPECT_EQ(a_.process().kill(), SIGKILL) << "a worker had ended by itself";
        if (fault == Fault::Kill) return end;
        EXPECT_EQ(b_.process().kill(), SIGKILL) << "a worker had ended by itself";
        return end;
    }

    const Fault fault;
    const Phase phase;
    double took = 0.0;  // ms from the fault to the end of the answer, or of the start

  private:
    void beforeStep(int step) {
        if (step != step_ || phase == Phase::Handshake || phase == Phase::Weights) return;
        begin_ = Clock::now();
        if (phase != Phase::Recovery) return strike();
        later_ = std::thread([this] {
            a_.process().kill();
            a_.start();
            std::this_thread::sleep_for(pause_);
            strike();
        });
    }

    const std::string name_;
    const int line_;
    const size_t bytes_;  // what the relay has carried when a start is struck
    const int step_;
    const microseconds pause_;
    WorkerProcess a_, b_;
    Relay relay_;
    Clock::time_point begin_;
    std::thread later_;
};

TEST(FaultCampaign, NothingHangsAndTheTextIsRight) {
    const char* wanted = std::getenv("DLLAMA_FAULTS");
    const int nFaults = wanted != nullptr ? std::atoi(wanted) : 24;
    const TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig("glm4moe");
    writeTinyModel(path, config, DType::F32);
    const std::vector<int> prompt = somePrompt(config, 50);
    ClusterOptions options;
    options.wire = Wire::F32;
    const std::vector<int> expected = RootUnderTest(path, options).greedy(prompt, kAnswer);
    options.wait = kWait;

    const char* given = std::getenv("DLLAMA_SEED");
    const unsigned seed = given != nullptr ? std::strtoul(given, nullptr, 10) : std::random_device{}();
    std::printf("seed %u\n", seed);
    std::mt19937 random(seed);
    std::map<std::string, Times> times;
    for (int i = 0; i < nFaults; i++) {
        const bool tls = i % 2 == 0;
        options.secret.reset();
        if (tls) options.secret = Secret::parse(kSecret, "test");
        Round round(random, tls);
        SCOPED_TRACE(fmt::format("fault {}: {}", i, round.name()));
        options.workers = round.workers();
        const std::string end = round.run(path, options, prompt, expected);
        std::printf("%d: %s: %s, %.0f ms\n", i, round.name().c_str(), end.c_str(), round.took);
        std::fflush(stdout);
        times[fmt::format("{}: {}", kFaultNames[static_cast<int>(round.fault)], end)].ms.push_back(round.took);
    }
    std::printf("from the fault to the end of the answer:\n");
    for (auto& [name, all] : times) all.print(name);
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    if (argc == 6 && std::string_view(argv[1]) == "--worker") return dllama::test::WorkerProcess::main(argv);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
