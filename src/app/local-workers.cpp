#include "app/local-workers.hpp"

#include <algorithm>

namespace dllama {

void useDevice(WorkerOptions& options, Device device, uint64_t memoryLimit, std::FILE* status) {
    options.makeBackend = [device, status](ThreadPool& pool) { return openDevice(device, pool, status); };
    options.collectives = openCollectives(device);
    options.memoryLimit = offeredMemory(device, memoryLimit);
}

LocalWorkers::LocalWorkers(const std::vector<Device>& devices, const std::string& modelPath,
                           const std::optional<Secret>& secret, int nThreads, uint64_t memoryLimit, std::FILE* status,
                           Trace* trace) {
    ThreadPool pool(1);
    for (const Device device : devices) {
        WorkerOptions options;
        options.address = {"127.0.0.1", 0};
        options.secret = secret;
        options.nThreads = std::max(1, nThreads / static_cast<int>(devices.size() + 1));
        options.modelPath = modelPath;
        options.trace = trace;
        options.speed = readBandwidth(device, pool);
        options.log = [](const std::string&) {};  // the root tells what matters
        useDevice(options, device, memoryLimit, status);
        workers_.push_back(std::make_unique<RunningWorker>(std::move(options)));
    }
}

std::vector<Address> LocalWorkers::addresses() const {
    std::vector<Address> addresses;
    for (const auto& worker : workers_) addresses.push_back({"127.0.0.1", worker->port()});
    return addresses;
}

}  // namespace dllama
