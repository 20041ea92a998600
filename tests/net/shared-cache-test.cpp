// Workers that share one cache folder, as all workers of a machine do unless told otherwise.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <random>

#include "child-process.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr int kAnswer = 6;

/// Rounds of the long test; more of them where nobody waits.
int nRounds() {
    const char* rounds = std::getenv("DLLAMA_SHARED_CACHE_ROUNDS");
    return rounds != nullptr ? std::stoi(rounds) : 6;
}

class SharedCache : public testing::Test {
  protected:
    SharedCache() { fs::create_directory(cache); }

    WorkerOptions cached() const {
        WorkerOptions options;
        options.cacheDir = cache;
        return options;
    }
    std::vector<int> answer(const std::vector<Address>& workers) const {
        ClusterOptions options;
        options.workers = workers;
        options.wire = Wire::F32;
        options.wait = milliseconds(20'000);
        return RootUnderTest(demo, options).greedy({1, 2, 3, 4, 5}, kAnswer);
    }
    std::vector<fs::path> files(const std::string& extension) const {
        std::vector<fs::path> found;
        for (const auto& entry : fs::directory_iterator(cache))
            if (entry.path().extension() == extension) found.push_back(entry.path());
        return found;
    }

    TemporaryFolder folder;
    const std::string cache = folder.file("cache");
    const std::string demo = DLLAMA_MODELS "/demo/demo-q40.m";
};

/// Two to four clusters of a root and a worker each, which all want the same slices at the same time.
TEST_F(SharedCache, ManyWorkersReceiveTheSameSlices) {
    const std::vector<int> expected = [&] {
        WorkerThread worker;
        return answer({worker.address()});
    }();
    std::mt19937 random(5);
    int nKills = 0;
    for (int round = 0; round < nRounds(); round++) {
        const int n = 2 + round % 3;
        if (round % 2 == 0)
            for (const auto& entry : fs::directory_iterator(cache)) fs::remove(entry.path());
        std::vector<std::unique_ptr<WorkerProcess>> workers;
        for (int i = 0; i < n; i++) workers.push_back(std::make_unique<WorkerProcess>("", 0, cache));
        std::vector<std::vector<int>> answers(n);
        std::vector<std::thread> roots;
        for (int i = 0; i < n; i++)
            roots.emplace_back([&, i, worker = workers[i]->address()] {
                try {
                    answers[i] = answer({worker});
                } catch (const std::exception& error) {
                    ADD_FAILURE() << "round " << round << ": " << error.what();
                }
            });
        // One is killed while it receives, or starts, or answers; it comes back.
        std::this_thread::sleep_for(milliseconds(random() % 150));
        WorkerProcess& victim = *workers[random() % n];
        EXPECT_EQ(victim.process().kill(), SIGKILL) << "round " << round;
        nKills++;
        victim.start();
        for (std::thread& root : roots) root.join();
        for (int i = 0; i < n; i++) EXPECT_EQ(answers[i], expected) << "round " << round << ", worker " << i;
        for (const auto& worker : workers) EXPECT_EQ(worker->process().kill(), SIGKILL) << "round " << round;
        EXPECT_EQ(files(".slices").size(), 1u) << "round " << round;
    }
    std::printf("%d rounds, %d kills\n", nRounds(), nKills);
}

/// One slice of 4 x 64 floats with the given contents, in the folder.
struct OneSlice {
    explicit OneSlice(const std::string& cache, uint64_t key = 1, uint64_t limit = 0)
        : store({{"w", DType::F32, 4, 64}}, {{"w", 0, 4, 0, 64}}, key, cache, limit) {}
    std::string receive(std::byte contents) {
        const std::span<std::byte> room = store.room(0);
        std::fill(room.begin(), room.end(), contents);
        return store.finish({XXH3_64bits(room.data(), room.size())});
    }
    bool holds(std::byte contents) const {
        std::vector<std::byte> scratch;
        const auto bytes = store.read({"w", 0, 4, 0, 64}, scratch);
        return bytes.size() == 1024 && std::count(bytes.begin(), bytes.end(), contents) == 1024;
    }
    SliceStore store;
};
constexpr std::byte kOnes{1}, kTwos{2};

TEST_F(SharedCache, EachReceivesIntoAFileOfItsOwn) {
    OneSlice a(cache), b(cache);
    EXPECT_EQ(files(".part").size(), 2u);
    EXPECT_EQ(a.receive(kOnes), "");
    EXPECT_FALSE(b.store.complete());
    EXPECT_EQ(b.receive(kOnes), "");
    EXPECT_TRUE(a.holds(kOnes) && b.holds(kOnes));
    EXPECT_TRUE(files(".part").empty());
    ASSERT_EQ(files(".slices").size(), 1u);
    // One file in memory, not two: what the other one had received is gone.
    const fs::path whole = files(".slices")[0];
    std::ifstream maps("/proc/self/maps");
    int nMapped = 0, nNameless = 0;
    for (std::string line; std::getline(maps, line);) {
        nMapped += line.find(whole.string()) != std::string::npos;
        nNameless += line.find(cache) != std::string::npos && line.find("(deleted)") != std::string::npos;
    }
    EXPECT_EQ(nMapped, 2);
    EXPECT_EQ(nNameless, 0);
    EXPECT_TRUE(OneSlice(cache).store.complete());
}

TEST_F(SharedCache, LinksAreNotFollowed) {
    const std::string target = folder.file("precious"), name = cache + "/0000000000000001.slices";
    std::ofstream(target) << "precious";
    fs::create_symlink(target, name + ".part");
    EXPECT_EQ(OneSlice(cache).receive(kOnes), "");
    fs::remove(name);
    fs::create_symlink(target, name);
    EXPECT_THROW(OneSlice{cache}, ConfigError);
    std::string text;
    std::getline(std::ifstream(target), text);
    EXPECT_EQ(text, "precious");
    EXPECT_TRUE(fs::is_symlink(name) && fs::is_symlink(name + ".part"));
}

TEST_F(SharedCache, WhatIsNoFileIsDoneWithout) {
    OneSlice early(cache);
    fs::create_directories(cache + "/0000000000000001.slices/inside");
    // At the begin, and where it appears while weights are received.
    EXPECT_THROW(OneSlice{cache}, ConfigError);
    EXPECT_NE(early.receive(kTwos).find("not a file"), std::string::npos);
    EXPECT_TRUE(early.holds(kTwos));
    EXPECT_TRUE(files(".part").empty());
    fs::create_directories(cache + "/0000000000000002.slices");
    ASSERT_EQ(::mkfifo((cache + "/0000000000000003.slices").c_str(), 0600), 0);
    for (const uint64_t key : {2, 3}) EXPECT_THROW(OneSlice(cache, key), ConfigError);
    // A worker says so once, and serves.
    {
        WorkerThread worker(cached());
        answer({worker.address()});
    }
    for (const fs::path& path : files(".slices"))
        if (fs::is_regular_file(path)) {
            fs::remove(path);
            fs::create_directory(path);
        }
    WorkerThread worker(cached());
    EXPECT_EQ(answer({worker.address()}).size(), kAnswer);
    EXPECT_EQ(worker.lines.count("are not kept"), 1) << worker.lines.all();
}

TEST_F(SharedCache, WhatAKillLeavesBehindGoes) {
    constexpr uint64_t kFile = 1088;  // 64 bytes of header
    const std::string left = cache + "/0000000000000009.00000001.part";
    std::ofstream(left) << std::string(5 * kFile, 'x');
    {
        const Socket alive(::open(left.c_str(), O_RDWR | O_CLOEXEC));
        ASSERT_EQ(::flock(alive.fd(), LOCK_EX), 0);
        EXPECT_EQ(OneSlice(cache, 1).receive(kOnes), "");
        EXPECT_TRUE(fs::exists(left));
        // It counts: for another one the first has to go.
        EXPECT_EQ(OneSlice(cache, 2, 6 * kFile).receive(kTwos), "");
        EXPECT_TRUE(fs::exists(left));
        EXPECT_EQ(files(".slices").size(), 1u);
        EXPECT_TRUE(OneSlice(cache, 2).store.complete());
    }
    EXPECT_TRUE(OneSlice(cache, 2).store.complete());
    EXPECT_FALSE(fs::exists(left));
    // A store that is not completed leaves nothing either.
    { OneSlice givenUp(cache, 3); }
    EXPECT_TRUE(files(".part").empty());
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && std::string_view(argv[1]) == "--worker") return dllama::test::WorkerProcess::main(argv);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
