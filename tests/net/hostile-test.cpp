// What a worker does with those who are no root: it tells of each in one line and goes on serving.
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "cluster/weights-id.hpp"
#include "local-cluster.hpp"
#include "net/batch-codec.hpp"
#include "net/frame.hpp"
#include "net/handshake.hpp"
#include "relay.hpp"
#include "tiny-model.hpp"

namespace dllama::test {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr const char* kSecret = "aG9zdGlsZSB0ZXN0IHNlY3JldCAwMTIzNDU2Nzg5YWI=";
constexpr const char* kOtherSecret = "YW5vdGhlciB0ZXN0IHNlY3JldCAwMTIzNDU2Nzg5YWI=";

/// Less than any of the lengths that are announced here; sanitizers keep several times as much as the program itself.
#ifdef DLLAMA_SANITIZED
constexpr size_t kMostMegabytes = 2000;
#else
constexpr size_t kMostMegabytes = 300;
#endif

/// The most memory that this process ever held, in MB.
size_t peakMegabytes() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
        if (word == "VmHWM:") {
            size_t kilobytes = 0;
            status >> kilobytes;
            return kilobytes >> 10;
        }
    return 0;
}

WorkerOptions withSecret() {
    WorkerOptions options;
    options.secret = Secret::parse(kSecret, "test");
    return options;
}

/// Sends `bytes` and hangs up. What the other side does with them is its business.
void throwAt(const Address& address, const std::string& bytes) {
    try {
        PlainConnection connection(connectTcp(address, after(seconds(5))), "worker");
        connection.send(std::as_bytes(std::span(bytes)), after(seconds(5)));
    } catch (const ConnectionError&) {
    }
}

/// Until the other side hangs up.
milliseconds timeToHangUp(Connection& connection) {
    const Clock::time_point begin = Clock::now();
    std::vector<std::byte> buffer(65536);
    try {
        for (;;) connection.receive(buffer, after(seconds(10)));
    } catch (const ConnectionError&) {
    }
    return std::chrono::duration_cast<milliseconds>(Clock::now() - begin);
}

std::string frame(FrameType type, uint32_t length, const std::string& payload, uint32_t session = 0) {
    std::string bytes(kFrameHeaderBytes, '\0');
    writeHeader({session, 0, type, 0, length}, std::as_writable_bytes(std::span(bytes)));
    bytes += payload;
    sealFrame(std::as_writable_bytes(std::span(bytes)));
    return bytes;
}

std::string randomBytes(std::mt19937& random, size_t n) {
    std::string bytes(n, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
}

class Hostile : public testing::Test {
  protected:
    Hostile() {
        writeTinyModel(path, config, DType::F32);
        prompt = somePrompt(config, 20);
        options.wire = Wire::F32;
        options.wait = milliseconds(0);
        RootUnderTest alone(path, options);
        expected = alone.greedy(prompt, 20);
    }
    ClusterOptions optionsFor(const Address& worker, bool secret) const {
        ClusterOptions o = options;
        o.workers = {worker};
        if (secret) o.secret = Secret::parse(kSecret, "test");
        return o;
    }
    /// What a root says to the only worker beside it.
    ClusterSetup goodSetup(const Address& worker) const {
        ModelFile file(path);
        const Architecture arch = makeArchitecture(file.config());
        ClusterSetup setup;
        describeModel(file, arch, setup);
        setup.nodes = {{1.0}, {1.0}};
        setup.numbers = {0, 1};
        setup.addresses = {"", worker.text()};
        setup.limits.maxPositions = 64;
        setup.limits.nKvBlocks = 2;
        setup.planHash = makeShardPlan(arch, setup.nodes).hash();
        return setup;
    }
    void expectServes(WorkerThread& worker, bool secret) {
        RootUnderTest root(path, optionsFor(worker.address(), secret));
        EXPECT_EQ(root.greedy(prompt, 20), expected);
    }

    TemporaryFolder folder;
    const std::string path = folder.file("model.m");
    const ModelConfig config = tinyConfig("glm4");
    std::vector<int> prompt, expected;
    ClusterOptions options;
};

TEST_F(Hostile, NoiseIsToldInOneLineEach) {
    std::mt19937 random(1);
    const std::vector<std::string> noises = {
        "",                                                           // a port scan
        "x",                                                          // less than a header
        "GET / HTTP/1.1\r\nHost: worker\r\n\r\n",                     // a browser
        randomBytes(random, 100'000),                                 // garbage
        std::string(100'000, '\0'),                                   //
        frame(FrameType::Hello, 0xffffffffu, "{}"),                   // a length of 4 GiB
        frame(FrameType::Batch, 1u << 30, "{}"),                      // a length that is fine for another frame
        frame(FrameType::Hello, 100, "{\"protocol\""),                // half a frame
        frame(FrameType::Hello, 2, "{}"),                             // a greeting without fields
        frame(FrameType::Hello, 4, "null"),                           //
        frame(FrameType::Hello, 4096, std::string(4096, '[')),        // deep nesting
        frame(static_cast<FrameType>(77), 0, ""),                     // a type that does not exist
        std::string("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", 10),  // half a TLS greeting
    };
    for (const bool secret : {false, true}) {
        WorkerThread worker(secret ? withSecret() : WorkerOptions{});
        for (size_t i = 0; i < noises.size(); i++) {
            throwAt(worker.address(), noises[i]);
            ASSERT_TRUE(worker.lines.waitFor("refused 127.0.0.1:", static_cast<int>(i) + 1)) << "noise " << i;
        }
        EXPECT_EQ(worker.lines.count(""), static_cast<int>(noises.size())) << worker.lines.all();
        expectServes(worker, secret);
    }
    EXPECT_LT(peakMegabytes(), kMostMegabytes);
}

TEST_F(Hostile, SlowCallersAreCutOffAndHinderNobody) {
    WorkerThread worker(withSecret());
    // A TLS greeting that is good as far as it goes, byte by byte.
    std::string greeting("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);
    greeting.resize(517);
    std::vector<std::thread> callers;
    for (int i = 0; i < 8; i++)
        callers.emplace_back([&] {
            PlainConnection connection(connectTcp(worker.address(), after(seconds(5))), "worker");
            const Clock::time_point begin = Clock::now();
            try {
                for (const char& byte : greeting) {
                    connection.send(std::as_bytes(std::span(&byte, 1)), after(seconds(1)));
                    std::this_thread::sleep_for(milliseconds(100));
                }
            } catch (const ConnectionError&) {
            }
            EXPECT_GT(Clock::now() - begin, seconds(4));
            EXPECT_LT(Clock::now() - begin, seconds(7));
        });
    std::this_thread::sleep_for(milliseconds(300));
    expectServes(worker, true);
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(worker.lines.count("refused"), 8) << worker.lines.all();
}

TEST_F(Hostile, WrongSecret) {
    WorkerThread worker(withSecret());
    ClusterOptions wrong = optionsFor(worker.address(), true);
    wrong.secret = Secret::parse(kOtherSecret, "test");
    wrong.wait = seconds(20);  // nothing to wait for
    const Clock::time_point begin = Clock::now();
    try {
        RootUnderTest root(path, wrong);
        FAIL() << "the secrets differ";
    } catch (const PeerLost& error) {
        EXPECT_NE(std::string(error.what()).find("another secret"), std::string::npos) << error.what();
    }
    EXPECT_LT(Clock::now() - begin, seconds(2));
    // It tries again, since a damaged byte looks the same, but not for long.
    EXPECT_EQ(worker.lines.count("another secret"), 3) << worker.lines.all();
    EXPECT_THROW(RootUnderTest(path, optionsFor(worker.address(), false)), PeerLost);  // none at all
    EXPECT_EQ(worker.lines.count("has connected"), 0) << worker.lines.all();
    expectServes(worker, true);

    WorkerThread plain;
    EXPECT_THROW(RootUnderTest(path, optionsFor(plain.address(), true)), PeerLost);
    expectServes(plain, false);
}

TEST_F(Hostile, RecordedLineIsOfNoUse) {
    WorkerThread worker(withSecret()), plain;
    std::string recorded;
    for (const bool secret : {false, true}) {
        Relay relay(secret ? worker.address() : plain.address());
        RootUnderTest root(path, optionsFor(relay.address(), secret));
        EXPECT_EQ(root.greedy(prompt, 20), expected);
        recorded = relay.firstSent();

        // Words of the greeting and of the setup, and weights, are found in plain text and nowhere else.
        const std::string everything = relay.everything();
        std::vector<std::byte> scratch;
        const std::span<const std::byte> weights =
            root.file.read({"layers.1.ffn.down.weight", config.hiddenSize - 1, config.hiddenSize, 160, 192}, scratch);
        for (const std::string& sample : {std::string("\"protocol\""), std::string("hidden_size"),
                                          std::string(reinterpret_cast<const char*>(weights.data()), 32)})
            EXPECT_EQ(everything.find(sample) != std::string::npos, !secret);
    }
    ASSERT_TRUE(worker.lines.waitFor("session has ended"));
    ASSERT_GT(recorded.size(), 100u);
    for (int i = 1; i <= 3; i++) {
        throwAt(worker.address(), recorded);
        ASSERT_TRUE(worker.lines.waitFor("refused", i));
    }
    EXPECT_EQ(worker.lines.count("has connected"), 1) << worker.lines.all();
    expectServes(worker, true);
}

TEST_F(Hostile, FlippedBitsInPlainTextAreALossAndNoWrongText) {
    WorkerThread worker;
    Relay relay(worker.address());
    options.wait = seconds(10);
    RootUnderTest root(path, optionsFor(relay.address(), false));
    for (int at : {0, 3, 9, 15}) {
        EXPECT_EQ(root.greedy(prompt, 20,
                              [&](int step) {
                                  if (step == at) relay.flipOneBit();
                              }),
                  expected);
        EXPECT_TRUE(relay.hasFlipped());
    }
    EXPECT_GE(worker.lines.count("arrived damaged") + root.lines.count("arrived damaged"), 4)
        << root.lines.all() << worker.lines.all();
}

TEST_F(Hostile, AnotherVersionIsToldSo) {
    WorkerThread worker;
    const nlohmann::json hello = {
        {"protocol", kProtocolVersion + 1}, {"build", "9.9"}, {"identity", "dllama/3 control 00000000000000ab 0 1"}};
    PlainConnection connection(connectTcp(worker.address(), after(seconds(5))), "worker");
    sendFrame(connection, 0, FrameType::Hello, hello.dump(), after(seconds(5)));
    const Frame answer = receiveFrame(connection, 0, {FrameType::Welcome}, after(seconds(5)));
    EXPECT_NE(answer.text().find("the root must too"), std::string_view::npos) << answer.text();
    EXPECT_TRUE(worker.lines.waitFor("another version"));
    expectServes(worker, false);
}

TEST_F(Hostile, SecondRootIsRefusedAndTheFirstGoesOn) {
    WorkerThread worker(withSecret());
    RootUnderTest root(path, optionsFor(worker.address(), true));
    const Secret secret = Secret::parse(kSecret, "test");
    const std::vector<int> tokens = root.greedy(prompt, 20, [&](int step) {
        if (step != 5) return;
        try {
            dial(worker.address(), {Hello::Purpose::Control, 77, 0, 1}, &secret, after(seconds(5)));
            ADD_FAILURE() << "a second root was taken";
        } catch (const Refused& refused) {
            EXPECT_TRUE(refused.busy);
        }
        // Nor can anyone join a session that he does not know.
        EXPECT_THROW(dial(worker.address(), {Hello::Purpose::Data, 77, 0, 1}, &secret, after(seconds(5))), Refused);
    });
    EXPECT_EQ(tokens, expected);
    EXPECT_EQ(worker.lines.count("serves another root"), 1) << worker.lines.all();
    EXPECT_EQ(root.lines.count("lost"), 0) << root.lines.all();
}

TEST_F(Hostile, FloodLeavesTheAnswerAlone) {
    WorkerThread worker(withSecret());
    RootUnderTest root(path, optionsFor(worker.address(), true));
    constexpr int kThreads = 4, kEach = 250;
    std::atomic<bool> flooding{true};
    std::thread flood([&] {
        std::vector<std::thread> threads;
        for (int t = 0; t < kThreads; t++)
            threads.emplace_back([&, t] {
                std::mt19937 random(t);
                std::vector<std::unique_ptr<PlainConnection>> silent;
                for (int i = 0; i < kEach; i++) {
                    if (i % 5 == 0 && silent.size() < 15)
                        silent.push_back(std::make_unique<PlainConnection>(
                            connectTcp(worker.address(), after(seconds(5))), "worker"));
                    else
                        throwAt(worker.address(), randomBytes(random, random() % 300));
                }
            });
        for (std::thread& thread : threads) thread.join();
        flooding = false;
    });
    int rounds = 0;
    do {
        EXPECT_EQ(root.greedy(prompt, 20), expected);
        rounds++;
    } while (flooding);
    flood.join();
    EXPECT_EQ(root.lines.count("lost"), 0) << root.lines.all();
    EXPECT_TRUE(worker.lines.waitFor("refused", kThreads * kEach)) << worker.lines.count("refused");
    EXPECT_EQ(worker.lines.count("refused"), kThreads * kEach);
    EXPECT_LT(peakMegabytes(), kMostMegabytes);
    std::printf("%d answers while %d connections were thrown at the worker, at most %zu MB held\n", rounds,
                kThreads * kEach, peakMegabytes());
}

/// Someone who is let in, since there is no secret, and then says what he likes.
struct FakeRoot {
    explicit FakeRoot(const WorkerThread& worker) {
        control =
            dial(worker.address(), {Hello::Purpose::Control, kSession, 0, 1}, nullptr, after(seconds(5))).connection;
        data = dial(worker.address(), {Hello::Purpose::Data, kSession, 0, 1}, nullptr, after(seconds(5))).connection;
    }
    static constexpr uint32_t kSession = 77;
    std::unique_ptr<Connection> control, data;
};

TEST_F(Hostile, DamagedSetups) {
    WorkerThread worker;
    const ClusterSetup setup = goodSetup(worker.address());
    const std::string good = setupToJson(setup);
    const auto edited = [&](const char* pointer, const nlohmann::json& value) {
        nlohmann::json document = nlohmann::json::parse(good);
        document[nlohmann::json::json_pointer(pointer)] = value;
        return document.dump();
    };
    std::vector<std::string> setups = {
        "",
        "[]",
        std::string(1 << 20, '['),
        edited("/wire", std::string(1 << 20, 'w')),
        edited("/plan_hash", "0"),
        edited("/plan_hash", "no number"),
        edited("/node_weights", {1.0}),
        edited("/node_weights", {1.0, -1.0}),
        edited("/node_weights", {1e308, 1e-308}),
        edited("/numbers", {0, 2}),
        edited("/numbers", {0, 1000000}),
        edited("/limits/max_tokens", 1 << 20),
        edited("/limits/max_outputs", 1 << 20),
        edited("/limits/max_positions", -1),
        edited("/limits/kv_type", "q99"),
        edited("/limits/kv_type", "q40"),
        edited("/limits/kv_type", "q80"),
        edited("/limits/kv_type", "bf16"),
        edited("/limits/max_positions", 1 << 24),
        edited("/limits/kv_blocks", 1 << 24),
        edited("/weight_type", "q40"),
        edited("/config", "{}"),
        edited("/config", 5),
        edited("/config", std::string(200'000, '[')),
        good.substr(0, good.size() - 1) + R"(,"more":)" + std::string(200'000, '[') + std::string(200'000, ']') + "}",
        edited("/exceptions/layers.0.attn.k.weight", "Q80"),
        edited("/exceptions/final_norm.weight", "F16"),
    };
    std::mt19937 random(7);
    for (int i = 0; i < 40; i++) {
        std::string text = good;
        for (int j = 0; j < 3; j++) text[random() % text.size()] = static_cast<char>(random());
        setups.push_back(text);
    }
    for (size_t i = 0; i < setups.size(); i++) {
        {
            FakeRoot root(worker);
            sendFrame(*root.data, FakeRoot::kSession, FrameType::Setup, setups[i], after(seconds(5)));
            // A refusal, or, where the damage did no harm, what comes after a setup.
            std::vector<std::byte> some(1);
            try {
                root.data->receive(some, after(seconds(10)));
            } catch (const ConnectionError&) {
            }
        }
        ASSERT_TRUE(worker.lines.waitFor("session has ended", static_cast<int>(i) + 1)) << "setup " << i;
    }
    EXPECT_LT(peakMegabytes(), kMostMegabytes);
    expectServes(worker, false);
}

/// Setups that differ from a good one in one number or word: refused in one line each, whatever it is.
TEST_F(Hostile, SetupsOfAnyNumber) {
    WorkerThread worker;
    const ClusterSetup setup = goodSetup(worker.address());
    nlohmann::json document = nlohmann::json::parse(setupToJson(setup));
    const nlohmann::json config = nlohmann::json::parse(document["config"].get<std::string>());
    std::vector<std::string> setups;
    const std::vector<nlohmann::json> values = {0,     -1, 1,       7,    1 << 20, 1LL << 40,
                                                1e300, "", nullptr, true, "f16",   "q40"};
    for (const auto& [name, good] : config.items())
        for (const auto& value : values) {
            nlohmann::json bad = config, whole = document;
            bad[name] = value;
            whole["config"] = bad.dump();
            setups.push_back(whole.dump());
        }
    const nlohmann::json fields = document.flatten();
    for (const auto& [name, good] : fields.items())
        for (const auto& value : values) {
            nlohmann::json bad = document;
            bad[nlohmann::json::json_pointer(name)] = value;
            setups.push_back(bad.dump());
        }
    for (const std::string& text : setups) {
        FakeRoot root(worker);
        sendFrame(*root.data, FakeRoot::kSession, FrameType::Setup, text, after(seconds(5)));
        std::vector<std::byte> some(1);
        try {
            root.data->receive(some, after(seconds(10)));
        } catch (const ConnectionError&) {
        }
        root.control.reset();
        root.data.reset();
        ASSERT_TRUE(worker.lines.waitFor("session has ended", static_cast<int>(&text - setups.data()) + 1)) << text;
    }
    EXPECT_LT(peakMegabytes(), kMostMegabytes);
    expectServes(worker, false);
    std::printf("%zu setups\n", setups.size());
}

TEST_F(Hostile, MemoryLimitHoldsWhereTheMemoryIs) {
    WorkerOptions small;
    small.memoryLimit = 64 << 10;
    WorkerThread worker(std::move(small));
    FakeRoot root(worker);
    ClusterSetup setup = goodSetup(worker.address());
    setup.limits.nKvBlocks = 1 << 12;
    sendFrame(*root.data, FakeRoot::kSession, FrameType::Setup, setupToJson(setup), after(seconds(5)));
    EXPECT_TRUE(worker.lines.waitFor("this worker has 0")) << worker.lines.all();
}

TEST_F(Hostile, WorkerThatIsListedTwiceIsRefusedAtOnce) {
    WorkerThread worker;
    const Clock::time_point begin = Clock::now();
    ClusterOptions twice = optionsFor(worker.address(), false);
    twice.wait = seconds(20);
    twice.workers.push_back(worker.address());
    EXPECT_THROW(RootUnderTest(path, twice), ConfigError);
    twice.workers.back().host = "localhost";  // by another name
    try {
        RootUnderTest root(path, twice);
        FAIL() << "one worker as two";
    } catch (const PeerLost& error) {
        EXPECT_NE(std::string(error.what()).find("listed twice"), std::string::npos) << error.what();
    }
    EXPECT_LT(Clock::now() - begin, seconds(3));
}

TEST_F(Hostile, OwnPortIsNoWorker) {
    const Listener server({"127.0.0.1", 0});  // an API server that has not begun to answer
    const Clock::time_point begin = Clock::now();
    for (const char* host : {"127.0.0.1", "localhost", "::1"}) {
        ClusterOptions own = optionsFor({host, server.port()}, false);
        own.wait = seconds(20);
        own.ownPort = server.port();
        EXPECT_THROW(RootUnderTest(path, own), ConfigError) << host;
    }
    EXPECT_LT(Clock::now() - begin, seconds(3));
}

TEST_F(Hostile, WorkerThatNeverGetsReadyIsGivenUp) {
    // It greets, beats, and answers nothing else.
    Listener listener({"127.0.0.1", 0});
    std::atomic<bool> ended{false};
    std::thread fake([&] {
        std::vector<Caller> controls, data;
        while (!ended) {
            if (std::optional<Incoming> incoming = listener.accept(milliseconds(100))) {
                Caller caller = greet(std::move(*incoming), nullptr, after(seconds(1)));
                NodeInfo node;
                node.memory = 1 << 30;
                welcome(caller, node, after(seconds(1)));
                (caller.hello.purpose == Hello::Purpose::Control ? controls : data).push_back(std::move(caller));
            }
            for (const Caller& caller : controls) try {
                    sendFrame(*caller.connection, static_cast<uint32_t>(caller.hello.session), FrameType::Heartbeat, "",
                              after(milliseconds(50)));
                } catch (const ConnectionError&) {
                    // Given up: what is to be shown.
                }
        }
    });
    ClusterOptions stuck = optionsFor({"127.0.0.1", listener.port()}, false);
    stuck.stall = milliseconds(300);
    const Clock::time_point begin = Clock::now();
    EXPECT_THROW(RootUnderTest(path, stuck), PeerLost);
    EXPECT_LT(Clock::now() - begin, seconds(8));
    ended = true;
    fake.join();
}

TEST_F(Hostile, SilentRootIsGivenUp) {
    WorkerOptions impatient;
    impatient.silence = milliseconds(500);
    WorkerThread worker(std::move(impatient));
    FakeRoot root(worker);
    EXPECT_LT(timeToHangUp(*root.data), milliseconds(2000));
    EXPECT_TRUE(worker.lines.waitFor("no sign of life")) << worker.lines.all();
    expectServes(worker, false);
}

TEST(HostileBatch, DamageIsFoundOrHarmless) {
    const BatchLimits limits{8, 4, 6, 128, 1, 32, DType::F32};
    Batch batch;
    batch.nTokens = 3;
    batch.nSequences = 2;
    batch.maxBlocks = 2;
    batch.embeddings.resize(3 * 32 * 4);
    batch.positions = {4, 5, 40};
    batch.contextLengths = {5, 6, 41};
    batch.ropePositions = {4, 5, 40};
    batch.sequences = {0, 0, 1};
    batch.blockTables = {0, 1, 2, 3};
    batch.outputRows = {1, 2};
    std::vector<std::byte> good;
    encodeBatch(batch, good);
    Batch decoded;
    ASSERT_NO_THROW(decodeBatch(good, limits, "test", decoded));
    ASSERT_EQ(decoded.blockTables, batch.blockTables);

    std::mt19937 random(3);
    int nRefused = 0;
    for (int i = 0; i < 20'000; i++) {
        std::vector<std::byte> bad = good;
        for (unsigned j = 0; j <= random() % 3; j++) {
            // Mostly the counts and indices, of which there are few.
            const size_t at = random() % 2 == 0 ? random() % 24 : 24 + 384 + random() % (bad.size() - 24 - 384);
            bad[at] = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 8);
        }
        if (random() % 8 == 0) bad.resize(random() % (bad.size() + 16));
        try {
            decodeBatch(bad, limits, "test", decoded);
            ASSERT_LE(decoded.nTokens, limits.maxTokens);
            for (int32_t block : decoded.blockTables) ASSERT_TRUE(block >= 0 && block < limits.nKvBlocks);
            for (int32_t row : decoded.outputRows) ASSERT_TRUE(row >= 0 && row < decoded.nTokens);
            for (int32_t position : decoded.positions) ASSERT_LT(position, decoded.maxBlocks * kKvBlockPositions);
        } catch (const ProtocolError&) {
            nRefused++;
        }
    }
    EXPECT_GT(nRefused, 10'000);
    EXPECT_LT(nRefused, 20'000);
}

}  // namespace

}  // namespace dllama::test

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
