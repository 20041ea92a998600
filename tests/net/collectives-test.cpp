// How the ranks of a cluster choose what they add up by, and what becomes of it when a rank is lost.
#include "cluster/collectives.hpp"

#include <atomic>

#include "local-cluster.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

DeviceIdentity gpu(const std::string& name, const std::string& host, const std::string& process,
                   const std::vector<std::string>& reaches = {}) {
    return {name, host, process, "2.28.9", reaches};
}

CollectivesChoice choose(const std::vector<DeviceIdentity>& devices, std::optional<Collectives> wish = std::nullopt,
                         bool encrypted = false) {
    std::vector<std::string> names = {"root"};
    for (size_t i = 1; i < devices.size(); i++) names.push_back(fmt::format("worker{}", i));
    return chooseCollectives(wish, devices, names, encrypted);
}

std::string refusal(const std::vector<DeviceIdentity>& devices, Collectives wish) {
    try {
        choose(devices, wish);
    } catch (const ConfigError& error) {
        return error.what();
    }
    return "no refusal";
}

TEST(ChooseCollectives, TheFastestThatAllCan) {
    const auto a = gpu("A", "h", "p", {"B"}), b = gpu("B", "h", "p", {"A"});
    EXPECT_EQ(choose({a, b}).how, Collectives::Peer);
    EXPECT_EQ(choose({a, gpu("B", "h", "q", {"A"})}).how, Collectives::Nccl);
    EXPECT_EQ(choose({a, gpu("B", "h", "q", {"A"})}).reason, "worker1 is another process");
    EXPECT_EQ(choose({a, gpu("B", "h", "p")}).how, Collectives::Nccl);
    EXPECT_EQ(choose({a, gpu("B", "other", "q")}).how, Collectives::Nccl);
    EXPECT_EQ(choose({a, {}}).how, Collectives::Tcp);
    EXPECT_EQ(choose({a, {}}).reason, "worker1 computes without a GPU");
    EXPECT_EQ(choose({{}, a}).reason, "root computes without a GPU");
    EXPECT_EQ(choose({a}).how, Collectives::Tcp);
}

TEST(ChooseCollectives, MemoryIsForFewRanks) {
    std::vector<std::string> all;
    for (int i = 0; i < kMaxPeerRanks + 1; i++) all.push_back(std::to_string(i));
    std::vector<DeviceIdentity> devices;
    for (const std::string& name : all) devices.push_back(gpu(name, "h", "p", all));
    EXPECT_EQ(choose(devices).how, Collectives::Nccl);
    devices.pop_back();
    EXPECT_EQ(choose(devices).how, Collectives::Peer);
}

TEST(ChooseCollectives, OneGpuTwiceIsForTheNetwork) {
    const CollectivesChoice choice = choose({gpu("A", "h", "p"), gpu("B", "h", "q"), gpu("A", "h", "r")});
    EXPECT_EQ(choice.how, Collectives::Tcp);
    EXPECT_EQ(choice.reason, "root and worker2 are on the same GPU");
}

TEST(ChooseCollectives, OtherOrNoNccl) {
    DeviceIdentity none = gpu("B", "h", "q"), old = none;
    none.nccl = "";
    old.nccl = "2.18.3";
    EXPECT_EQ(choose({gpu("A", "h", "p"), none}).reason, "worker1 has no NCCL (libnccl.so.2)");
    EXPECT_EQ(choose({gpu("A", "h", "p"), old}).reason, "worker1 has NCCL 2.18.3, root has 2.28.9");
}

TEST(ChooseCollectives, SecretsAreNotGivenUpUnasked) {
    const std::vector<DeviceIdentity> apart = {gpu("A", "h", "p"), gpu("B", "other", "q")};
    EXPECT_EQ(choose(apart, std::nullopt, true).how, Collectives::Tcp);
    EXPECT_EQ(choose(apart, Collectives::Nccl, true).how, Collectives::Nccl);
    EXPECT_EQ(choose({gpu("A", "h", "p"), gpu("B", "h", "q")}, std::nullopt, true).how, Collectives::Nccl);
}

TEST(ChooseCollectives, WishesAreMetOrRefused) {
    const auto a = gpu("A", "h", "p", {"B"}), b = gpu("B", "h", "p", {"A"});
    EXPECT_EQ(choose({a, b}, Collectives::Tcp).how, Collectives::Tcp);
    EXPECT_EQ(choose({a, b}, Collectives::Nccl).how, Collectives::Nccl);
    EXPECT_EQ(choose({a, b}, Collectives::Peer).how, Collectives::Peer);
    EXPECT_EQ(refusal({a, {}}, Collectives::Nccl), "--collectives nccl: worker1 computes without a GPU");
    EXPECT_EQ(refusal({a, gpu("B", "h", "q")}, Collectives::Peer), "--collectives peer: worker1 is another process");
    EXPECT_EQ(refusal({a, gpu("B", "h", "p")}, Collectives::Peer),
              "--collectives peer: the GPU of worker1 cannot reach the memory of that of root");
}

/// Says that it is a GPU; adds up by the network.
class FakeCollectives final : public DeviceCollectives {
  public:
    explicit FakeCollectives(const std::string& name) : name_(name) {}
    DeviceIdentity identity() const override { return gpu(name_, "host", name_); }
    std::string newRendezvous(Collectives) const override { return fmt::format("rendezvous{}", ++nRendezvous); }
    std::unique_ptr<Communicator> join(const CollectiveMember& member, Backend&, Communicator& host,
                                       std::stop_token lost) const override {
        const std::lock_guard lock(mutex);
        members.push_back(member);
        token = lost;
        if (fails) throw PeerLost(1, "no way through");
        return std::make_unique<Through>(host, nAllReduces);
    }

    std::atomic<bool> fails{false};
    mutable std::atomic<int> nRendezvous{0}, nAllReduces{0};
    mutable std::mutex mutex;
    mutable std::vector<CollectiveMember> members;
    mutable std::stop_token token;

  private:
    class Through final : public Communicator {
      public:
        Through(Communicator& host, std::atomic<int>& nAllReduces) : host_(host), nAllReduces_(nAllReduces) {}
        int rank() const override { return host_.rank(); }
        int nRanks() const override { return host_.nRanks(); }
        void allReduce(const StepInputs& step, Activations& x) override {
            nAllReduces_++;
            host_.allReduce(step, x);
        }
        void gatherRows(std::span<const float> mine, int nRows, std::span<const int> cols, float* all) override {
            host_.gatherRows(mine, nRows, cols, all);
        }

      private:
        Communicator& host_;
        std::atomic<int>& nAllReduces_;
    };
    const std::string name_;
};

class ClusterOfDevices : public testing::Test {
  protected:
    ClusterOfDevices() {
        writeTinyModel(path, config, DType::F32);
        prompt = somePrompt(config, 20);
        options.wire = Wire::F32;
        RootUnderTest alone(path, options);
        expected = alone.greedy(prompt, 10);
        options.collectives = root;
    }
    std::unique_ptr<WorkerThread> start(std::shared_ptr<const DeviceCollectives> collectives) {
        WorkerOptions worker;
        worker.collectives = std::move(collectives);
        auto thread = std::make_unique<WorkerThread>(std::move(worker));
        options.workers.push_back(thread->address());
        return thread;
    }

    TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig("glm4moe");
    std::vector<int> prompt, expected;
    ClusterOptions options;
    std::shared_ptr<FakeCollectives> root = std::make_shared<FakeCollectives>("A"),
                                     other = std::make_shared<FakeCollectives>("B");
};

TEST_F(ClusterOfDevices, AllAddUpByTheirDevices) {
    const auto worker = start(other);
    RootUnderTest cluster(path, options);
    EXPECT_EQ(cluster.greedy(prompt, 10), expected);
    EXPECT_EQ(cluster.lines.count("all-reduce by NCCL"), 1) << cluster.lines.all();
    EXPECT_GT(root->nAllReduces, 0);
    EXPECT_EQ(root->nAllReduces, other->nAllReduces);
    ASSERT_EQ(other->members.size(), 1u);
    EXPECT_EQ(other->members[0].rendezvous, "rendezvous1");
    EXPECT_EQ(other->members[0].rank, 1);
    EXPECT_EQ(other->members[0].nRanks, 2);
    EXPECT_EQ(other->members[0].how, Collectives::Nccl);
}

TEST_F(ClusterOfDevices, OneWithoutSendsAllThroughTheNetwork) {
    const auto a = start(other), b = start(nullptr);
    RootUnderTest cluster(path, options);
    EXPECT_EQ(cluster.greedy(prompt, 10), expected);
    EXPECT_EQ(root->nAllReduces + other->nAllReduces, 0);
    EXPECT_EQ(cluster.lines.count("computes without a GPU"), 1) << cluster.lines.all();
}

TEST_F(ClusterOfDevices, AnImpossibleWishNamesTheNode) {
    const auto worker = start(nullptr);
    options.collectivesWish = Collectives::Nccl;
    try {
        RootUnderTest cluster(path, options);
        FAIL() << "no refusal";
    } catch (const ConfigError& error) {
        EXPECT_EQ(error.what(),
                  fmt::format("--collectives nccl: {} computes without a GPU", options.workers[0].text()));
    }
}

TEST_F(ClusterOfDevices, WhatCannotBeReachedGoesThroughTheNetwork) {
    const auto worker = start(other);
    root->fails = other->fails = true;
    RootUnderTest cluster(path, options);
    EXPECT_EQ(cluster.greedy(prompt, 10), expected);
    EXPECT_EQ(cluster.lines.count("all-reduce through the network (no way through)"), 1) << cluster.lines.all();
    EXPECT_EQ(root->nAllReduces, 0);
}

TEST_F(ClusterOfDevices, WhatWaitsOnADeviceIsToldOfALoss) {
    const auto a = start(other);
    auto b = start(std::make_shared<FakeCollectives>("C"));
    options.wait = std::chrono::milliseconds(300);
    RootUnderTest cluster(path, options);
    const std::stop_token first = root->token;
    EXPECT_FALSE(first.stop_requested());
    const std::vector<int> tokens = cluster.greedy(prompt, 10, [&](int step) {
        if (step == 3) b.reset();
    });
    EXPECT_EQ(tokens, expected);
    EXPECT_TRUE(first.stop_requested());
    EXPECT_FALSE(root->token.stop_requested());
    EXPECT_EQ(root->members.back().nRanks, 2);
    EXPECT_EQ(root->members.back().rendezvous, "rendezvous2");
}

}  // namespace

}  // namespace dllama::test
