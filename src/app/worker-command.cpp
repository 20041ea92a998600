#include <signal.h>

#include <cstdlib>
#include <thread>

#include "app/cluster-flags.hpp"
#include "app/device.hpp"
#include "app/memory-bandwidth.hpp"
#include "app/options.hpp"
#include "app/session.hpp"
#include "engine/worker.hpp"

namespace dllama {

namespace {

/// $XDG_CACHE_HOME/dllama or ~/.cache/dllama.
std::string defaultCacheDir() {
    if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0')
        return std::string(cache) + "/dllama";
    if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
        return std::string(home) + "/.cache/dllama";
    return {};
}

}  // namespace

int runWorker(const WorkerFlags& flags) {
    WorkerOptions options;
    options.secret = findSecret(flags.secretFile);
    options.insecure = flags.insecure;
    options.address.port = flags.port;
    options.address.host = flags.host;
    if (flags.host.empty()) options.address.host = options.secret || flags.insecure ? "0.0.0.0" : "127.0.0.1";
    if (flags.port < 0 || flags.port > 65535) throw ConfigError("--port is {}, must be from 1 to 65535", flags.port);
    options.nThreads = checkedThreads(flags.nThreads);
    options.cacheDir = flags.cacheDir == "none" ? "" : flags.cacheDir.empty() ? defaultCacheDir() : flags.cacheDir;
    options.cacheLimit = uint64_t{flags.cacheSizeMb} << 20;
    options.modelPath = flags.model;
    options.memoryLimit = flags.memoryLimitMb << 20;
    {
        ThreadPool pool(options.nThreads);
        openDevice(flags.device, pool, 0, stdout);  // a device that is not there is told now, not when a root comes
        options.speed = measureReadBandwidth(pool);
    }
    options.makeBackend = [device = flags.device](ThreadPool& pool) { return openDevice(device, pool, 0, stdout); };
    options.log = [](const std::string& line) {
        fmt::print("⭕ {}\n", line);
        std::fflush(stdout);
    };

    // Signals come to this thread alone, which does nothing but wait for them.
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, nullptr);
    const std::string host = options.address.host;
    const bool plain = !options.secret && options.insecure;
    Worker worker(std::move(options));
    if (plain) fmt::print("⚠️ --insecure: everything travels in plain text and anyone may connect\n");
    fmt::print("Listening on {}...\n", Address{host, worker.port()}.text());
    std::fflush(stdout);
    std::thread serving([&] { worker.run(); });
    int signal = 0;
    sigwait(&ends, &signal);
    fmt::print("🛑 Stopping; once more to stop at once\n");
    std::fflush(stdout);
    pthread_sigmask(SIG_UNBLOCK, &ends, nullptr);
    worker.stop();
    serving.join();
    return 0;
}

int runKeygen(const std::string& path) {
    Secret::generateFile(path);
    fmt::print("{}: a new secret; copy it to every machine of the cluster and name it by --secret-file\n", path);
    return 0;
}

}  // namespace dllama
