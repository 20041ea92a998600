// How weights get to a worker, and when they need not.
#include <xxhash.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <thread>

#include "local-cluster.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMegabyte = 1'000'000;

class Transfer : public testing::Test {
  protected:
    WorkerOptions cached() const {
        WorkerOptions options;
        options.cacheDir = folder.file("cache");
        return options;
    }
    /// Bytes that the root sends until it can answer, which it then does.
    uint64_t bytesOfStart(const std::vector<const WorkerThread*>& workers, const std::string& model) {
        ClusterOptions options;
        for (const WorkerThread* worker : workers) options.workers.push_back(worker->address());
        RootUnderTest root(model, options);
        const uint64_t bytes = root.forward->traffic().sentBytes;
        const std::vector<int> tokens = root.greedy({1, 2, 3, 4, 5}, 8);
        if (expected.empty()) expected = tokens;
        EXPECT_EQ(tokens, expected);
        return bytes;
    }
    std::vector<fs::path> cacheFiles() const {
        std::vector<fs::path> files;
        for (const auto& entry : fs::directory_iterator(folder.file("cache"))) files.push_back(entry.path());
        return files;
    }

    TemporaryFolder folder;
    const std::string demo = DLLAMA_MODELS "/demo/demo-q40.m";
    std::vector<int> expected;
};

TEST_F(Transfer, SecondStartSendsLessThanAMegabyte) {
    for (const bool first : {true, false}) {
        WorkerThread a(cached()), b(cached());
        const uint64_t bytes = bytesOfStart({&a, &b}, demo);
        std::printf("%s start: %.2f MB to two workers\n", first ? "first" : "second",
                    static_cast<double>(bytes) * 1e-6);
        if (first)
            EXPECT_GT(bytes, 10 * kMegabyte);
        else
            EXPECT_LT(bytes, kMegabyte);
        // The same root comes back to a worker that has them in memory.
        EXPECT_LT(bytesOfStart({&a, &b}, demo), kMegabyte);
    }
    EXPECT_EQ(cacheFiles().size(), 2u);
}

TEST_F(Transfer, DamagedCacheIsSentAnew) {
    {
        WorkerThread worker(cached());
        bytesOfStart({&worker}, demo);
    }
    ASSERT_EQ(cacheFiles().size(), 1u);
    {
        std::fstream file(cacheFiles()[0], std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(5'000'000);
        const char damaged = static_cast<char>(file.get() ^ 1);
        file.seekp(5'000'000);
        file.put(damaged);
    }
    for (const bool repaired : {false, true}) {
        WorkerThread worker(cached());
        EXPECT_EQ(bytesOfStart({&worker}, demo) < kMegabyte, repaired);
    }
    fs::resize_file(cacheFiles()[0], 4'000'000);
    WorkerThread worker(cached());
    EXPECT_GT(bytesOfStart({&worker}, demo), kMegabyte);
}

/// What a hostile root, or one whose file has changed, leaves in the folder: another weight, with hashes that agree.
TEST_F(Transfer, OtherWeightsUnderATrueNameAreNotUsed) {
    size_t nSlices = 0, first = 0;
    {
        WorkerThread worker(cached());
        bytesOfStart({&worker}, demo);
        ClusterOptions options;
        options.workers = {worker.address()};
        RootUnderTest root(demo, options);
        const auto slices = rankSlices(root.arch, root.forward->plan(), 1);
        nSlices = slices.size();
        first =
            static_cast<size_t>(slices[0].rows()) * storedBytes(root.file.info(slices[0].name).dtype, slices[0].cols());
    }
    {
        std::fstream file(cacheFiles()[0], std::ios::in | std::ios::out | std::ios::binary);
        const size_t begin = (24 + 8 * nSlices + 63) / 64 * 64;
        std::vector<char> slice(first);
        file.seekg(static_cast<std::streamoff>(begin));
        file.read(slice.data(), static_cast<std::streamsize>(first));
        for (char& c : slice) c = static_cast<char>(c ^ 1);
        file.seekp(static_cast<std::streamoff>(begin));
        file.write(slice.data(), static_cast<std::streamsize>(first));
        const uint64_t hash = XXH3_64bits(slice.data(), slice.size());
        file.seekp(24);
        file.write(reinterpret_cast<const char*>(&hash), 8);
    }
    for (const bool repaired : {false, true}) {
        WorkerThread worker(cached());
        EXPECT_EQ(bytesOfStart({&worker}, demo) < kMegabyte, repaired);  // and the same text
        EXPECT_EQ(worker.lines.count("other weights under this model's name"), repaired ? 0 : 1);
    }
}

TEST_F(Transfer, TheLongestUnusedGoWhenTheCacheIsFull) {
    // A worker alone with the root holds half of the model, about 6 MB; with another worker a third.
    const auto start = [&](size_t nWorkers, uint64_t limit) {
        std::vector<std::unique_ptr<WorkerThread>> workers;
        std::vector<const WorkerThread*> pointers;
        for (size_t i = 0; i < nWorkers; i++) {
            WorkerOptions options = cached();
            options.cacheLimit = limit;
            workers.push_back(std::make_unique<WorkerThread>(std::move(options)));
            pointers.push_back(workers.back().get());
        }
        expected.clear();  // another number of ranks may round to another text
        return bytesOfStart(pointers, demo);
    };
    start(1, 0);
    const fs::path first = cacheFiles().at(0);
    const uint64_t bytes = fs::file_size(first);
    start(2, 0);
    ASSERT_EQ(cacheFiles().size(), 3u);
    fs::last_write_time(first, fs::last_write_time(first) - std::chrono::hours(1));
    start(3, 2 * bytes);  // three quarters of the size each
    EXPECT_FALSE(fs::exists(first));
    uint64_t total = 0;
    for (const fs::path& file : cacheFiles()) total += fs::file_size(file);
    EXPECT_LE(total, 2 * bytes);
    // What is larger than the limit is not kept, and nothing goes for it.
    const size_t before = cacheFiles().size();
    EXPECT_GT(start(1, bytes / 2), kMegabyte);
    EXPECT_EQ(cacheFiles().size(), before);
}

TEST_F(Transfer, CacheThatCannotBeWrittenIsDoneWithout) {
    std::ofstream(folder.file("cache")) << "a file where a folder should be";
    WorkerThread worker(cached());
    EXPECT_GT(bytesOfStart({&worker}, demo), kMegabyte);
    EXPECT_EQ(worker.lines.count("are not kept"), 1) << worker.lines.all();
    EXPECT_LT(bytesOfStart({&worker}, demo), kMegabyte);  // from memory
}

TEST_F(Transfer, OwnFileIsReadIfItIsTheSameModel) {
    WorkerOptions same, other;
    same.modelPath = demo;
    other.modelPath = folder.file("other.m");
    writeTinyModel(other.modelPath, tinyConfig("glm4moe"), DType::F32);
    WorkerThread a(std::move(same)), b(std::move(other));
    EXPECT_LT(bytesOfStart({&a}, demo), kMegabyte);
    EXPECT_GT(bytesOfStart({&b}, demo), kMegabyte);
    EXPECT_EQ(b.lines.count("is not the root's model"), 1) << b.lines.all();
}

TEST_F(Transfer, NodesTellWhatTheyDid) {
    WorkerThread a, b;
    ClusterOptions options;
    options.workers = {a.address(), b.address()};
    RootUnderTest root(demo, options);
    root.greedy({1, 2, 3, 4, 5}, 8);
    // Two all-reduces in each of eight layers and one for the logits.
    constexpr uint64_t kCollectives = 8 * (2 * 8 + 1);
    auto nodes = root.forward->nodeStatistics();
    // A worker counts its last collective when it has sent its part, which may be after the root has asked.
    const auto late = [](const auto& node) { return node && node->sync.nCollectives < kCollectives; };
    for (int i = 0; i < 100 && std::any_of(nodes.begin(), nodes.end(), late); i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        nodes = root.forward->nodeStatistics();
    }
    ASSERT_EQ(nodes.size(), 3u);
    for (const auto& node : nodes) {
        ASSERT_TRUE(node);
        EXPECT_GT(node->computeSeconds, 0.0);
        EXPECT_EQ(node->sync.nCollectives, kCollectives);
        EXPECT_GE(node->sync.p99Us, node->sync.p50Us);
        EXPECT_GT(node->sync.p50Us, 0.0);
        EXPECT_GT(node->sync.bytesSent, 50'000u);
        EXPECT_LT(node->sync.bytesSent, kMegabyte);  // without weights
        EXPECT_GT(node->sync.bytesReceived, 50'000u);
    }
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
