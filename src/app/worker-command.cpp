#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "app/cluster-flags.hpp"
#include "app/device.hpp"
#include "app/local-workers.hpp"
#include "app/options.hpp"
#include "app/session.hpp"
#include "base/printable.hpp"

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
    // As an IPv6 address stands wherever a port follows it.
    if (flags.host.starts_with('[') && flags.host.ends_with(']'))
        options.address.host = flags.host.substr(1, flags.host.size() - 2);
    if (flags.host.empty()) options.address.host = options.secret || flags.insecure ? "0.0.0.0" : "127.0.0.1";
    if (flags.port < 0 || flags.port > 65535) throw ConfigError("--port is {}, must be from 1 to 65535", flags.port);
    options.nThreads = checkedThreads(flags.nThreads);
    options.cacheDir = flags.cacheDir == "none" ? "" : flags.cacheDir.empty() ? defaultCacheDir() : flags.cacheDir;
    options.cacheLimit = uint64_t{flags.cacheSizeMb} << 20;
    options.modelPath = flags.model;
    const std::vector<Device> devices = chooseDevices(flags.device, 0, stdout);
    if (flags.port != 0 && flags.port + devices.size() > 65536)
        throw ConfigError("--port is {}: {} GPUs need as many ports from there, up to 65535", flags.port,
                          devices.size());
    options.log = [](const std::string& line) {
        fmt::print("⭕ {}\n", printableLines(line));
        std::fflush(stdout);
    };

    // Signals come to this thread alone, which does nothing but wait for them.
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ends, nullptr);
    if (!options.secret && options.insecure)
        fmt::print("⚠️ --insecure: everything travels in plain text and anyone may connect\n");
    const auto trace = flags.trace.empty() ? nullptr : std::make_unique<Trace>(flags.trace);
    options.trace = trace.get();
    std::vector<std::unique_ptr<RunningWorker>> workers;
    for (const Device device : devices) {
        WorkerOptions own = options;
        if (options.address.port != 0) own.address.port += static_cast<int>(workers.size());
        ThreadPool pool(options.nThreads);
        openDevice(device, pool, stdout);  // a device that does not serve is told now, not when a root comes
        own.speed = readBandwidth(device, pool);
        own.nThreads = std::max(1, options.nThreads / static_cast<int>(devices.size()));
        useDevice(own, device, flags.memoryLimitMb << 20, stdout);
        if (device.isGpu()) fmt::print("📀 Offers {} MB of GPU {}\n", own.memoryLimit >> 20, device.gpu);
        workers.push_back(std::make_unique<RunningWorker>(own));
        fmt::print("Listening on {}...\n", Address{own.address.host, workers.back()->port()}.text());
        std::fflush(stdout);
    }
    int signal = 0;
    sigwait(&ends, &signal);
    fmt::print("🛑 Stopping; once more to stop at once\n");
    std::fflush(stdout);
    pthread_sigmask(SIG_UNBLOCK, &ends, nullptr);
    // A worker ends between two operations. One that takes longer, the setting up of a large cache say, has nothing to
    // save: what it received so far is dropped by the next start.
    std::thread([] {
        std::this_thread::sleep_for(std::chrono::seconds(2));
        std::_Exit(0);
    }).detach();
    workers.clear();
    if (trace) trace->finish();
    return 0;
}

int runKeygen(const std::string& path) {
    Secret::generateFile(path);
    fmt::print("{}: a new secret; copy it to every machine of the cluster and name it by --secret-file\n", path);
    return 0;
}

}  // namespace dllama
