// Random faults of every kind in every phase of a cluster's life, with TLS and in plain text: nothing hangs, and the
// text is that of one rank alone. DLLAMA_FAULTS says how many (the tests of every push: 24).
#include <cstdlib>
#include <map>
#include <random>

#include "child-process.hpp"
#include "relay.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

using std::chrono::milliseconds;

constexpr const char* kSecret = "ZmF1bHQgY2FtcGFpZ24gc2VjcmV0IDAxMjM0NTY3ODlhYg==";
constexpr int kAnswer = 24, kPromptSteps = 4;
/// Beyond what a recovery waits for lost workers.
constexpr milliseconds kWait{500}, kLongest{10'000};

enum class Fault { Kill, Stop, Cut, Delay, Corrupt, Truncate, SilenceToWorker, SilenceFromWorker };
constexpr const char* kFaultNames[] = {
    "kill", "stop", "cut", "delay", "corrupt", "truncate", "silence to worker", "silence from worker"};
enum class Phase { Start, Prefill, Decode, Recovery };
constexpr const char* kPhaseNames[] = {"start", "prefill", "decode", "recovery"};

struct Times {
    std::vector<double> ms;
    void print(const std::string& name) {
        std::sort(ms.begin(), ms.end());
        std::printf("%-32s %5zu  median %6.0f ms  longest %6.0f ms\n", name.c_str(), ms.size(), ms[ms.size() / 2],
                    ms.back());
    }
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
    for (int round = 0; round < nFaults; round++) {
        const bool tls = round % 2 == 0;
        const auto fault = static_cast<Fault>(random() % std::size(kFaultNames));
        const auto phase = static_cast<Phase>(random() % std::size(kPhaseNames));
        WorkerProcess a(tls ? kSecret : ""), b(tls ? kSecret : "");
        Relay relay(b.address());
        options.secret.reset();
        if (tls) options.secret = Secret::parse(kSecret, "test");
        options.workers = {a.address(), relay.address()};
        const int line = static_cast<int>(random() % 2);
        const auto strike = [&] {
            if (fault == Fault::Kill) b.process().kill();
            if (fault == Fault::Stop) b.process().signal(SIGSTOP);
            if (fault == Fault::Cut) relay.cut();
            if (fault == Fault::Delay) relay.disturb(Relay::Fault::Delay);
            if (fault == Fault::Corrupt) relay.disturb(Relay::Fault::Corrupt);
            if (fault == Fault::Truncate) relay.disturb(Relay::Fault::Truncate);
            if (fault == Fault::SilenceToWorker) relay.silence(line, true);
            if (fault == Fault::SilenceFromWorker) relay.silence(line, false);
        };
        const std::string what = fmt::format("round {}: {}, {}, {}", round, kFaultNames[static_cast<int>(fault)],
                                             kPhaseNames[static_cast<int>(phase)], tls ? "TLS" : "plain");
        Clock::time_point begin = Clock::now();
        std::thread later;
        if (phase == Phase::Start)
            later = std::thread([&, pause = std::chrono::microseconds(random() % 100'000)] {
                std::this_thread::sleep_for(pause);
                strike();
            });
        std::unique_ptr<RootUnderTest> root;
        std::string refusal;
        try {
            root = std::make_unique<RootUnderTest>(path, options);
        } catch (const PeerLost& error) {
            refusal = error.what();  // a start needs all workers: it ends with the name of the one that is missing
            EXPECT_NE(refusal.find(relay.address().text()), std::string::npos) << what << ": " << refusal;
        }
        const Clock::time_point started = Clock::now();
        if (phase != Phase::Start) begin = started;
        const int at = phase == Phase::Prefill ? static_cast<int>(random() % kPromptSteps)
                                               : kPromptSteps + static_cast<int>(random() % (kAnswer - 1));
        if (root) {
            const std::vector<int> tokens = root->greedy(prompt, kAnswer, [&](int step) {
                if (step != at || phase == Phase::Start) return;
                begin = Clock::now();
                if (phase == Phase::Recovery)
                    later = std::thread([&, pause = milliseconds(random() % 300)] {
                        a.process().kill();
                        a.start();
                        std::this_thread::sleep_for(pause);
                        strike();
                    });
                else
                    strike();
            });
            EXPECT_EQ(tokens, expected) << what << "\n" << root->lines.all();
        }
        const auto took = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
        if (later.joinable()) later.join();
        EXPECT_LT(took, (kWait + kLongest).count()) << what << "\n" << (root ? root->lines.all() : refusal);
        b.process().signal(SIGCONT);
        times[fmt::format("{}, {}", kFaultNames[static_cast<int>(fault)], kPhaseNames[static_cast<int>(phase)])]
            .ms.push_back(took);
        if (testing::Test::HasFailure()) break;
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
