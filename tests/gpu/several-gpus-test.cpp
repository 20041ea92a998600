// Ranks on two GPUs of one host: all-reduce, golden models, lost ranks.
#include <cstdlib>
#include <future>

#include "golden-case.hpp"
#include "gpu/cuda-backend.hpp"
#include "gpu/cuda-collectives.hpp"
#include "local-cluster.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

/// From the fault to the end of what waits on the device.
constexpr std::chrono::seconds kPromptly{5};

std::vector<Collectives> deviceCollectives() {
    std::vector<Collectives> all = {Collectives::Peer};
    if (!ncclVersion().empty()) all.push_back(Collectives::Nccl);
    return all;
}

class SeveralGpus : public testing::Test {
  protected:
    void SetUp() override {
        // As the program does it (app/device.cpp).
        setenv("CUDA_MODULE_LOADING", "EAGER", 0);
        if (cudaDevices().size() < 2) GTEST_SKIP() << "there are not two GPUs here";
        if (makeCudaCollectives(0)->identity().reaches.empty()) GTEST_SKIP() << "GPU 0 reaches no other one";
    }
};

/// Two ranks that add up, each with what it needs of its own.
struct Pair {
    struct Rank {
        std::unique_ptr<Backend> backend;
        SingleRank host;
        std::stop_source lost;
        std::unique_ptr<Communicator> communicator;
    };
    explicit Pair(Collectives how) {
        const std::string rendezvous = makeCudaCollectives(0)->newRendezvous(how);
        onBoth([&](int r) {
            ranks[r].backend = makeCudaBackend({.gpuIndex = r});
            ranks[r].communicator = makeCudaCollectives(r)->join({how, r, 2, rendezvous}, *ranks[r].backend,
                                                                 ranks[r].host, ranks[r].lost.get_token());
        });
    }
    template <typename Body>
    static void onBoth(const Body& body) {
        auto other = std::async(std::launch::async, [&] { body(1); });
        body(0);
        other.get();
    }
    Rank ranks[2];
};

Batch oneToken() {
    Batch batch;
    batch.nTokens = batch.nSequences = batch.maxBlocks = 1;
    batch.embeddings.resize(sizeof(float));
    batch.positions = batch.sequences = batch.blockTables = batch.ropePositions = {0};
    batch.contextLengths = {1};
    return batch;
}

/// Few bits: sums of them are exact in any order.
float valueOf(int rank, int round, int i) {
    return static_cast<float>((i * 7 + rank * 13 + round * 29) % 1013) * 0.125f;
}

TEST_F(SeveralGpus, SumsOfAnySize) {
    for (const Collectives how : deviceCollectives()) {
        Pair pair(how);
        Pair::onBoth([&](int r) {
            Backend& backend = *pair.ranks[r].backend;
            const Batch batch = oneToken();
            for (const int n : {1, 2, 31, 128, 511, 512, 513, 4096, 5120, 65535, 65536, 65537, 100'000, 1'000'000}) {
                Activations x = backend.allocateActivations(1, n, false);
                std::vector<float> values(n);
                for (int round = 0; round < 5; round++) {
                    for (int i = 0; i < n; i++) values[i] = valueOf(r, round, i);
                    const StepInputs& step = backend.upload(batch);
                    backend.uploadActivations(values.data(), 1, x);
                    pair.ranks[r].communicator->allReduce(step, x);
                    backend.download(x, 1, values.data());
                    for (int i = 0; i < n; i++)
                        ASSERT_EQ(values[i], valueOf(0, round, i) + valueOf(1, round, i))
                            << "rank " << r << ", value " << i << " of " << n << ", round " << round;
                }
            }
        });
    }
}

/// Sums of several sizes follow each other without a stop, many times over: slots are used again, recorded and not.
TEST_F(SeveralGpus, AThousandRecordedSteps) {
    constexpr int kRounds = 1000, kSums = 9;
    const int sizes[] = {4096, 512, 8192, 1, 65536};
    for (const Collectives how : deviceCollectives()) {
        Pair pair(how);
        Pair::onBoth([&](int r) {
            Backend& backend = *pair.ranks[r].backend;
            const Batch batch = oneToken();
            std::vector<Activations> x;
            std::vector<std::vector<float>> values;
            for (int k = 0; k < kSums; k++) {
                const int n = sizes[k % std::size(sizes)];
                x.push_back(backend.allocateActivations(1, n, k % 2 == 0));
                values.emplace_back(n);
            }
            for (int round = 0; round < kRounds; round++) {
                const StepInputs& step = backend.upload(batch);
                for (int k = 0; k < kSums; k++) {
                    for (size_t i = 0; i < values[k].size(); i++)
                        values[k][i] = valueOf(r, round + k, static_cast<int>(i));
                    backend.uploadActivations(values[k].data(), 1, x[k]);
                }
                backend.run("all-reduces", [&] {
                    for (Activations& each : x) pair.ranks[r].communicator->allReduce(step, each);
                });
                for (int k = 0; k < kSums; k++) {
                    backend.download(x[k], 1, values[k].data());
                    for (size_t i = 0; i < values[k].size(); i++)
                        ASSERT_EQ(values[k][i], valueOf(0, round + k, static_cast<int>(i)) +
                                                    valueOf(1, round + k, static_cast<int>(i)))
                            << "rank " << r << ", all-reduce " << k << ", round " << round;
                }
            }
        });
    }
}

TEST_F(SeveralGpus, RowsComeToRankZero) {
    Pair pair(Collectives::Peer);
    const std::vector<int> cols = {3, 2};
    Pair::onBoth([&](int r) {
        for (int round = 0; round < 100; round++) {
            std::vector<float> mine, all(10, -1.0f);
            for (int i = 0; i < 2 * cols[r]; i++) mine.push_back(valueOf(r, round, i));
            pair.ranks[r].communicator->gatherRows(mine, 2, cols, all.data());
            if (r != 0) continue;
            for (int row = 0; row < 2; row++)
                for (int c = 0; c < 5; c++)
                    ASSERT_EQ(all[row * 5 + c],
                              c < 3 ? valueOf(0, round, row * 3 + c) : valueOf(1, round, row * 2 + c - 3));
        }
    });
}

/// One rank does not come to an all-reduce: the other one's GPU waits for it until the loss is known.
TEST_F(SeveralGpus, AGpuThatWaitsForALostRankIsSetFree) {
    for (const Collectives how : deviceCollectives()) {
        Pair pair(how);
        Backend& backend = *pair.ranks[0].backend;
        const Batch batch = oneToken();
        Activations x = backend.allocateActivations(1, 4096, false);
        std::vector<float> values(4096);
        const StepInputs& step = backend.upload(batch);
        pair.ranks[0].communicator->allReduce(step, x);
        auto step0 = std::async(std::launch::async, [&] {
            backend.download(x, 1, values.data());
            float all = 0.0f;
            pair.ranks[0].communicator->gatherRows({values.data(), 1}, 1, std::vector<int>{1, 0}, &all);
        });
        EXPECT_EQ(step0.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
        pair.ranks[0].lost.request_stop();
        ASSERT_EQ(step0.wait_for(kPromptly), std::future_status::ready) << "the GPU still waits";
        EXPECT_THROW(step0.get(), PeerLost);
        EXPECT_THROW(pair.ranks[0].communicator->allReduce(step, x), PeerLost);
        pair.ranks[1].lost.request_stop();
    }
}

TEST_F(SeveralGpus, RanksThatDoNotComeAreGivenUp) {
    for (const Collectives how : deviceCollectives()) {
        const auto backend = makeCudaBackend({.gpuIndex = 0});
        const auto collectives = makeCudaCollectives(0);
        SingleRank host;
        std::stop_source lost;
        auto joining = std::async(std::launch::async, [&] {
            collectives->join({how, 0, 2, collectives->newRendezvous(how)}, *backend, host, lost.get_token());
        });
        EXPECT_EQ(joining.wait_for(std::chrono::milliseconds(300)), std::future_status::timeout);
        lost.request_stop();
        ASSERT_EQ(joining.wait_for(kPromptly), std::future_status::ready);
        EXPECT_THROW(joining.get(), PeerLost);
    }
}

std::function<std::unique_ptr<Backend>(ThreadPool&)> gpuBackend(int gpu) {
    return [gpu](ThreadPool&) { return makeCudaBackend({.gpuIndex = gpu}); };
}

std::unique_ptr<WorkerThread> gpuWorker(int gpu) {
    WorkerOptions options;
    options.makeBackend = gpuBackend(gpu);
    options.collectives = makeCudaCollectives(gpu);
    return std::make_unique<WorkerThread>(std::move(options));
}

TEST_F(SeveralGpus, GoldenModels) {
    const auto worker = gpuWorker(1);
    std::vector<Collectives> ways = deviceCollectives();
    ways.push_back(Collectives::Tcp);
    for (const std::string model : {"glm4-dense", "glm-hf-bias", "glm4moe-16x2", "glm4moe-128x8", "llama", "qwen3",
                                    "qwen3moe", "glm-4-9b-chat", "chatglm-6b"}) {
        const GoldenCase golden(DLLAMA_TEST_DATA "/golden/" + model);
        for (const Collectives how : ways) {
            const testing::ScopedTrace trace(__FILE__, __LINE__, fmt::format("{} {}", model, collectivesName(how)));
            ClusterOptions options;
            options.wire = Wire::F32;
            options.collectives = makeCudaCollectives(0);
            options.collectivesWish = how;
            options.workers = {worker->address()};
            RootUnderTest root(std::string(DLLAMA_GOLDEN_MODELS) + "/" + model + "-f32.m", options, {}, gpuBackend(0));
            EXPECT_EQ(root.forward->collectives(), how);
            double largest = 0.0;
            for (const GoldenPrompt& prompt : golden.prompts) {
                const std::vector<float> logits = root.logits(prompt.prompt);
                for (size_t t = 0; t < prompt.prompt.size(); t++) {
                    const std::span<const float> expected = golden.row(prompt, static_cast<int>(t));
                    if (expected.empty()) continue;
                    const auto row = std::span(logits).subspan(t * golden.vocab, golden.vocab);
                    largest = std::max(largest, largestDifference(row, expected));
                }
                expectGreedy(root.greedy(prompt.prompt, static_cast<int>(prompt.greedy.size())), prompt);
            }
            EXPECT_LE(largest, kLogitTolerance);
        }
    }
}

TEST_F(SeveralGpus, AnAnswerSurvivesALostRank) {
    const TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig("glm4moe");
    writeTinyModel(path, config, DType::F32);
    const std::vector<int> prompt = somePrompt(config, 50);
    ClusterOptions options;
    options.wire = Wire::F32;
    const std::vector<int> expected = RootUnderTest(path, options, {}, gpuBackend(0)).greedy(prompt, 40);
    for (const Collectives how : deviceCollectives()) {
        auto worker = gpuWorker(1);
        options.collectives = makeCudaCollectives(0);
        options.workers = {worker->address()};
        options.wait = std::chrono::milliseconds(300);
        options.collectivesWish = how;
        RootUnderTest root(path, options, {}, gpuBackend(0));
        const auto begin = Clock::now();
        EXPECT_EQ(root.greedy(prompt, 40,
                              [&](int step) {
                                  if (step == 20) worker.reset();
                              }),
                  expected)
            << root.lines.all();
        EXPECT_LT(Clock::now() - begin, std::chrono::seconds(20));
        EXPECT_GT(root.lines.count("computing again on 1 nodes"), 0) << root.lines.all();
    }
}

}  // namespace

}  // namespace dllama::test
