#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "app/options.hpp"
#include "app/run-report.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/printable.hpp"
#include "cpu/read-bandwidth.hpp"

namespace dllama {

namespace {

struct Measurement {
    std::string test;  // pp512, tg128, as llama-bench names them
    bool answer = false;
    double mean = 0.0;    // tokens a second
    double spread = 0.0;  // standard deviation
};

struct Test {
    int promptTokens = 0;
    int answerTokens = 0;
};

std::vector<int> randomTokens(int n, int vocabSize) {
    std::mt19937 random(1);
    std::vector<int> tokens(n);
    for (int& token : tokens) token = static_cast<int>(random() % static_cast<unsigned>(vocabSize));
    return tokens;
}

/// Tokens a second of one run: of the prompt, or of the answer behind `depth` positions.
double runOnce(Session& session, const Test& test, int depth) {
    Engine& engine = session.engine();
    const int nPrompt = std::max(1, test.promptTokens > 0 ? depth + test.promptTokens : depth);
    const std::vector<int> tokens = randomTokens(nPrompt, session.arch().config.vocabSize);
    engine.dropPrefixCache();  // what an earlier run left
    if (test.promptTokens > 0 && depth > 0)
        answer(engine, {std::vector<int>(tokens.begin(), tokens.begin() + depth), {.temperature = 0.0f}, {1, {}}});
    engine.submit({tokens, {.temperature = 0.0f}, {test.answerTokens + 1, {}}});
    RunReport report;
    while (engine.running()) report.add(engine.step());
    return test.promptTokens > 0 ? report.promptTokensPerSecond() : report.answerTokensPerSecond();
}

Measurement measure(Session& session, const Test& test, const BenchmarkOptions& options) {
    Measurement m;
    m.answer = test.promptTokens == 0;
    m.test = m.answer ? fmt::format("tg{}", test.answerTokens) : fmt::format("pp{}", test.promptTokens);
    if (options.depth > 0) m.test += fmt::format(" @ d{}", options.depth);
    std::vector<double> rates;
    runOnce(session, {test.promptTokens > 0 ? std::min(test.promptTokens, 64) : 0, std::min(test.answerTokens, 8)}, 0);
    for (int i = 0; i < options.repetitions; i++) rates.push_back(runOnce(session, test, options.depth));
    for (double rate : rates) m.mean += rate / static_cast<double>(rates.size());
    for (double rate : rates) m.spread += (rate - m.mean) * (rate - m.mean);
    m.spread = rates.size() > 1 ? std::sqrt(m.spread / static_cast<double>(rates.size() - 1)) : 0.0;
    return m;
}

}  // namespace

int runBenchmark(const BenchmarkOptions& options) {
    if (options.repetitions < 1) throw ConfigError("--repetitions is {}, must be 1 or more", options.repetitions);
    if (options.depth < 0) throw ConfigError("--depth is {}, must be 0 or more", options.depth);
    SessionNeeds needs;
    needs.tokenizer = false;
    needs.status = stderr;
    for (int n : options.promptTokens) needs.positions = std::max(needs.positions, options.depth + n + 2);
    for (int n : options.answerTokens) needs.positions = std::max(needs.positions, options.depth + n + 2);
    Session session(options.model, needs);

    const double bandwidth = measureReadBandwidth(session.pool());
    std::vector<Measurement> results;
    for (int n : options.promptTokens)
        if (n > 0) results.push_back(measure(session, {n, 0}, options));
    for (int n : options.answerTokens)
        if (n > 0) results.push_back(measure(session, {0, n}, options));

    session.finish();
    const size_t readPerToken = session.activeWeightBytes();
    const auto bytesPerSecond = [&](const Measurement& m) { return m.mean * static_cast<double>(readPerToken); };
    const std::string name = session.file().config().name.empty() ? session.arch().config.architecture
                                                                  : printable(session.file().config().name);
    const std::string model = fmt::format("{} {}", name, dtypeName(session.file().weightType()));
    if (options.json) {
        nlohmann::json tests = nlohmann::json::array();
        for (const Measurement& m : results) {
            nlohmann::json entry = {{"test", m.test},
                                    {"tokens_per_second", m.mean},
                                    {"spread", m.spread},
                                    {"repetitions", options.repetitions}};
            if (m.answer) {
                entry["bytes_per_second"] = bytesPerSecond(m);
                entry["share_of_read_bandwidth"] = bytesPerSecond(m) / bandwidth;
            }
            tests.push_back(entry);
        }
        fmt::print("{}\n", nlohmann::json({{"model", model},
                                           {"file_bytes", session.file().bytes()},
                                           {"backend", session.backend().name()},
                                           {"threads", session.nThreads()},
                                           {"read_bandwidth", bandwidth},
                                           {"weight_bytes_per_token", readPerToken},
                                           {"tests", tests}})
                               .dump(2));
        return 0;
    }
    fmt::print("| model | size | backend | threads | test | t/s | GB/s | of read bandwidth |\n");
    fmt::print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n");
    for (const Measurement& m : results) {
        fmt::print("| {} | {:.2f} MiB | {} | {} | {} | {:.2f} ± {:.2f} |", model,
                   static_cast<double>(session.file().bytes()) / (1 << 20), session.backend().name(),
                   session.nThreads(), m.test, m.mean, m.spread);
        if (m.answer)
            fmt::print(" {:.2f} | {:.0f}% |\n", bytesPerSecond(m) / 1e9, 100.0 * bytesPerSecond(m) / bandwidth);
        else
            fmt::print(" | |\n");
    }
    fmt::print("\nMemory reads {:.2f} GB/s with {} threads; a token reads {:.2f} MiB of weights.\n", bandwidth / 1e9,
               session.nThreads(), static_cast<double>(readPerToken) / (1 << 20));
    return 0;
}

}  // namespace dllama
