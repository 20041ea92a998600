// Collectives of ranks, and the small parts that a cluster is made of.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <random>

#include "backend/reference-backend.hpp"
#include "local-cluster.hpp"
#include "net/secret.hpp"
#include "net/tcp-communicator.hpp"

namespace dllama::test {

namespace {

using std::chrono::milliseconds;

/// Ranks as threads, each connected to all others.
class Mesh {
  public:
    Mesh(int nRanks, Wire wire, milliseconds timeout = std::chrono::seconds(20)) : backend_(makeReferenceBackend()) {
        lines_.resize(nRanks);
        for (auto& line : lines_) line.resize(nRanks);
        for (int a = 0; a < nRanks; a++)
            for (int b = a + 1; b < nRanks; b++) {
                int ends[2];
                if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0)
                    throw Error("no socket pair");
                lines_[a][b] = std::make_unique<PlainConnection>(Socket(ends[0]), fmt::format("rank {}", b));
                lines_[b][a] = std::make_unique<PlainConnection>(Socket(ends[1]), fmt::format("rank {}", a));
            }
        for (int rank = 0; rank < nRanks; rank++) {
            TcpCommunicator::Options options;
            options.rank = rank;
            options.session = 7;
            options.wire = wire;
            options.timeout = timeout;
            std::vector<Connection*> peers;
            for (const auto& line : lines_[rank]) peers.push_back(line.get());
            ranks_.push_back(std::make_unique<TcpCommunicator>(options, peers, *backend_));
        }
    }
    int nRanks() const { return static_cast<int>(ranks_.size()); }
    Connection& line(int from, int to) { return *lines_[from][to]; }
    TcpCommunicator& rank(int rank) { return *ranks_[rank]; }
    void onAllRanks(const std::function<void(int rank, TcpCommunicator& communicator)>& body) {
        std::vector<std::thread> threads;
        for (int rank = 0; rank < nRanks(); rank++) threads.emplace_back([&, rank] { body(rank, *ranks_[rank]); });
        for (std::thread& thread : threads) thread.join();
    }

  private:
    std::unique_ptr<Backend> backend_;
    std::vector<std::vector<std::unique_ptr<Connection>>> lines_;
    std::vector<std::unique_ptr<TcpCommunicator>> ranks_;
};

struct Case {
    Wire wire;
    int nRanks;
};

class Reduction : public testing::TestWithParam<Case> {};

TEST_P(Reduction, AllRanksHoldTheSameBitsOfTheSum) {
    const auto [wire, nRanks] = GetParam();
    Mesh mesh(nRanks, wire);
    for (const size_t n : {size_t{1}, size_t{31}, size_t{64}, size_t{1000}, size_t{300'000}}) {
        std::mt19937 random(static_cast<unsigned>(n));
        std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
        std::vector<std::vector<float>> parts(nRanks, std::vector<float>(n));
        std::vector<double> sum(n, 0.0);
        for (auto& part : parts)
            for (size_t i = 0; i < n; i++) sum[i] += part[i] = uniform(random);
        for (const bool oneShot : {true, false}) {
            std::vector<std::vector<float>> values = parts;
            mesh.onAllRanks([&](int rank, TcpCommunicator& communicator) {
                if (oneShot)
                    communicator.reduceOneShot(values[rank].data(), n);
                else
                    communicator.reduceScatterGather(values[rank].data(), n);
            });
            double worst = 0.0;
            for (size_t i = 0; i < n; i++) worst = std::max(worst, std::abs(values[0][i] - sum[i]));
            // Each part is rounded once, and the sum once more where slices of it travel.
            const double step = wire == Wire::F32 ? 1e-7 : wire == Wire::F16 ? 5e-4 : 1.0 / 250.0;
            EXPECT_LE(worst, 2.0 * nRanks * step) << n << " values, one shot " << oneShot;
            for (int rank = 1; rank < nRanks; rank++)
                EXPECT_EQ(std::memcmp(values[rank].data(), values[0].data(), n * sizeof(float)), 0)
                    << n << " values, rank " << rank << ", one shot " << oneShot;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Wires, Reduction,
                         testing::Values(Case{Wire::F32, 2}, Case{Wire::F32, 5}, Case{Wire::F16, 3}, Case{Wire::Q80, 2},
                                         Case{Wire::Q80, 3}, Case{Wire::Q80, 8}),
                         [](const auto& info) {
                             return fmt::format("{}_{}_ranks", wireName(info.param.wire), info.param.nRanks);
                         });

TEST(Gather, ColumnsOfAllRanksBecomeRows) {
    constexpr int kRows = 3;
    const std::vector<int> cols = {2, 0, 5};
    Mesh mesh(3, Wire::Q80);
    std::vector<float> all(kRows * 7, -1.0f);
    mesh.onAllRanks([&](int rank, TcpCommunicator& communicator) {
        std::vector<float> mine;
        for (int row = 0; row < kRows; row++)
            for (int col = 0; col < cols[rank]; col++) mine.push_back(static_cast<float>(100 * row + 10 * rank + col));
        communicator.gatherRows(mine, kRows, cols, rank == 0 ? all.data() : nullptr);
    });
    for (int row = 0; row < kRows; row++)
        for (int col = 0; col < 7; col++)
            EXPECT_EQ(all[row * 7 + col], static_cast<float>(100 * row + (col < 2 ? col : 20 + col - 2)));
}

TEST(Line, IsMeasuredByAllTogether) {
    Mesh mesh(3, Wire::Q80);
    mesh.onAllRanks([](int, TcpCommunicator& communicator) {
        const LineCost cost = communicator.measureLine();
        EXPECT_GT(cost.latencyUs, 0.0);
        EXPECT_GT(cost.bytesPerUs, 0.0);
        EXPECT_EQ(communicator.statistics().bytesSent, 0u);  // measuring is no part of the work
    });
}

TEST(Line, DecidesHowSumsAreMade) {
    const LineCost lan{150.0, 117.0};
    EXPECT_TRUE(TcpCommunicator::oneShotIsFaster(lan, 2, 4352));
    EXPECT_TRUE(TcpCommunicator::oneShotIsFaster(lan, 4, 4352));
    EXPECT_FALSE(TcpCommunicator::oneShotIsFaster(lan, 8, 4352));
    EXPECT_FALSE(TcpCommunicator::oneShotIsFaster(lan, 4, 1'000'000));
}

TEST(Loss, SilentRankIsNamedAtTheDeadline) {
    Mesh mesh(3, Wire::F32, milliseconds(500));
    std::atomic<int> named{0};
    mesh.onAllRanks([&](int rank, TcpCommunicator& communicator) {
        if (rank == 2) return;  // sleeps
        std::vector<float> values(64, 1.0f);
        const Clock::time_point begin = Clock::now();
        try {
            communicator.reduceOneShot(values.data(), values.size());
            ADD_FAILURE() << "rank 2 has said nothing";
        } catch (const PeerLost& lost) {
            EXPECT_EQ(lost.rank, 2);
            named++;
        }
        EXPECT_LT(Clock::now() - begin, milliseconds(2000));
    });
    EXPECT_EQ(named, 2);
}

TEST(Loss, EveryFlippedBitIsNoticed) {
    std::vector<float> values(64, 1.0f);
    std::vector<std::byte> good(kFrameHeaderBytes + 256);
    writeHeader({7, 1, FrameType::Part, 0, 256}, good);
    sealFrame(good);
    {
        Mesh mesh(2, Wire::F32);
        mesh.line(1, 0).send(good, after(milliseconds(500)));
        EXPECT_NO_THROW(mesh.rank(0).reduceOneShot(values.data(), values.size()));
    }
    for (size_t bit = 0; bit < 8 * good.size(); bit += bit < 8 * kFrameHeaderBytes ? 1 : 37) {
        std::vector<std::byte> bad = good;
        bad[bit / 8] ^= std::byte(1 << bit % 8);
        Mesh mesh(2, Wire::F32);
        mesh.line(1, 0).send(bad, after(milliseconds(500)));
        EXPECT_THROW(mesh.rank(0).reduceOneShot(values.data(), values.size()), Error) << "bit " << bit;
    }
}

TEST(Loss, FrameOfAnotherCollectiveIsRefused) {
    std::vector<float> values(64, 1.0f);
    std::vector<std::byte> frame(kFrameHeaderBytes + 256);
    for (const FrameHeader& header : {FrameHeader{7, 2, FrameType::Part, 0, 256},     // a later one
                                      FrameHeader{8, 1, FrameType::Part, 0, 256},     // another session
                                      FrameHeader{7, 1, FrameType::Rows, 0, 256},     // another kind
                                      FrameHeader{7, 1, FrameType::Part, 0, 255}}) {  // another length
        Mesh mesh(2, Wire::F32);
        writeHeader(header, frame);
        mesh.line(1, 0).send(frame, after(milliseconds(500)));
        EXPECT_THROW(mesh.rank(0).reduceOneShot(values.data(), values.size()), PeerLost);
    }
}

/// A socket that listens on loopback.
Socket listening(int backlog, Endpoint& endpoint) {
    Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto& address = reinterpret_cast<sockaddr_in&>(endpoint.storage);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    endpoint.length = sizeof address;
    EXPECT_EQ(::bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), endpoint.length), 0);
    EXPECT_EQ(::listen(socket.fd(), backlog), 0);
    EXPECT_EQ(::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &endpoint.length), 0);
    return socket;
}

TEST(Connecting, TheSecondAddressIsTriedWhenTheFirstIsDead) {
    Endpoint dead, refusing, alive;
    // With a full queue nobody answers, as at an address that leads nowhere.
    const Socket silent = listening(0, dead);
    std::vector<Socket> queue;
    for (int i = 0; i < 4; i++) {
        queue.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        ::connect(queue.back().fd(), reinterpret_cast<sockaddr*>(&dead.storage), dead.length);
    }
    { const Socket gone = listening(1, refusing); }
    const Socket listener = listening(16, alive);
    const auto timeOf = [&](const std::vector<Endpoint>& endpoints) {
        const Clock::time_point begin = Clock::now();
        try {
            connectTcp({"a name", 1}, after(milliseconds(1500)), [&](const Address&) { return endpoints; });
        } catch (const ConnectionError& error) {
            return std::pair(Clock::now() - begin, std::string(error.what()));
        }
        return std::pair(Clock::now() - begin, std::string());
    };
    EXPECT_EQ(timeOf({alive}).second, "");
    const auto [time, error] = timeOf({dead, refusing, alive});
    EXPECT_EQ(error, "");
    EXPECT_LT(time, milliseconds(1000));
    EXPECT_EQ(timeOf({dead, dead, dead, dead, dead, dead, dead, dead, alive}).second, "");
    EXPECT_EQ(timeOf({refusing}).second, "a name:1: Connection refused");
    const auto [limit, why] = timeOf({dead});
    EXPECT_EQ(why, "a name:1: Connection timed out");
    EXPECT_GE(limit, milliseconds(1400));
    EXPECT_LT(limit, milliseconds(1900));
}

TEST(Connecting, DeadNameServersKeepToTheLimit) {
    std::atomic<bool> answered{false};
    const Clock::time_point begin = Clock::now();
    EXPECT_THROW(connectTcp({"a name", 1}, after(milliseconds(200)),
                            [&](const Address&) {
                                std::this_thread::sleep_for(milliseconds(1000));
                                answered = true;
                                return std::vector<Endpoint>{};
                            }),
                 ConnectionError);
    EXPECT_LT(Clock::now() - begin, milliseconds(600));
    while (!answered) std::this_thread::sleep_for(milliseconds(10));  // it refers to this test
    EXPECT_THROW(connectTcp({"no such name.invalid", 1}, after(milliseconds(2000))), ConnectionError);
}

TEST(Addresses, OnlyThisMachineIsLoopback) {
    for (const char* host : {"localhost", "127.0.0.1", "127.1.2.3", "::1"}) EXPECT_TRUE(isLoopback(host)) << host;
    for (const char* host : {"127.evil.example", "127.0.0.1.example.org", "128.0.0.1", "10.0.0.1", "::2", "", "127"})
        EXPECT_FALSE(isLoopback(host)) << host;
}

TEST(Addresses, ThisMachineByAllItsNames) {
    for (const char* host : {"localhost", "127.0.0.1", "127.0.0.2", "::1", "0.0.0.0"})
        EXPECT_TRUE(isThisMachine(host)) << host;
    char own[256] = {};
    ASSERT_EQ(::gethostname(own, sizeof own - 1), 0);
    try {
        lookUp({own, 0});
        EXPECT_TRUE(isThisMachine(own)) << own;
    } catch (const ConnectionError&) {
        // A machine whose own name nobody knows.
    }
    for (const char* host : {"192.0.2.1", "2001:db8::1", "no-such-host.invalid"})  // for documentation (RFC 5737)
        EXPECT_FALSE(isThisMachine(host)) << host;
}

TEST(Addresses, AreReadAndRefused) {
    EXPECT_EQ(parseAddress("10.0.0.2:9999"), (Address{"10.0.0.2", 9999}));
    EXPECT_EQ(parseAddress("box.local:1"), (Address{"box.local", 1}));
    EXPECT_EQ(parseAddress("[fe80::1]:65535"), (Address{"fe80::1", 65535}));
    EXPECT_EQ(parseAddress("[fe80::1]:65535").text(), "[fe80::1]:65535");
    EXPECT_EQ(parseAddress("box"), (Address{"box", 9999}));
    EXPECT_EQ(parseAddress("[fe80::1%eth0]"), (Address{"fe80::1%eth0", 9999}));
    for (const char* bad : {"", ":", ":1", "[]", "[]:1", "a]", "[::1", "::1", "box:", "box:0", "box:65536", "box:1x",
                            "fe80::1:99", "box:-1"})
        EXPECT_THROW(parseAddress(bad), ConfigError) << bad;
}

TEST(Secrets, AreMadeReadAndRefused) {
    const TemporaryFolder folder;
    const std::string path = folder.file("secret");
    Secret::generateFile(path);
    EXPECT_THROW(Secret::generateFile(path), ConfigError);  // never overwritten
    const Secret secret = Secret::readFile(path);
    EXPECT_NE(secret.derive("a"), secret.derive("b"));
    EXPECT_EQ(secret.derive("a"), Secret::readFile(path).derive("a"));
    ::chmod(path.c_str(), 0640);
    EXPECT_THROW(Secret::readFile(path), ConfigError);
    EXPECT_THROW(Secret::readFile(folder.file("none")), ConfigError);
    EXPECT_THROW(Secret::parse("c2hvcnQ=", "test"), ConfigError);
    EXPECT_THROW(Secret::parse("this is not base64 at all, is it?", "test"), ConfigError);
    EXPECT_THROW(Secret::parse(std::string(5000, 'A'), "test"), ConfigError);
    EXPECT_NO_THROW(Secret::parse(" MDEyMzQ1Njc4OWFiY2RlZg==\n", "test"));
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
