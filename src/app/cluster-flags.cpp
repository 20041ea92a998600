#include "app/cluster-flags.hpp"

#include <charconv>
#include <cstdlib>
#include <sstream>

#include "app/interrupt.hpp"
#include "app/transfer-lines.hpp"
#include "base/errors.hpp"
#include "base/printable.hpp"

namespace dllama {

namespace {

std::vector<double> parseWeights(const std::string& text) {
    std::vector<double> weights;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        double weight = 0.0;
        const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), weight);
        if (error != std::errc() || end != part.data() + part.size() || !(weight > 0.0))
            throw ConfigError("--node-weights {}: {} is not a number above 0", text, part);
        weights.push_back(weight);
    }
    return weights;
}

}  // namespace

std::optional<Secret> findSecret(const std::string& secretFile) {
    if (!secretFile.empty()) return Secret::readFile(secretFile);
    // An empty one is a mistake, such as a variable that was not set, and must not mean "no secret".
    if (const char* text = std::getenv("DLLAMA_SECRET"); text != nullptr) return Secret::parse(text, "DLLAMA_SECRET");
    return std::nullopt;
}

ClusterOptions clusterOptions(const ModelOptions& options, Device root, ThreadPool& pool, std::FILE* status) {
    const ClusterFlags& flags = options.cluster;
    ClusterOptions cluster;
    cluster.secret = findSecret(flags.secretFile);
    for (const std::string& worker : flags.workers) {
        cluster.workers.push_back(parseAddress(worker));
        if (!cluster.secret && !flags.insecure && !isLoopback(cluster.workers.back().host))
            throw ConfigError("worker {} is another machine: give --secret-file, or --insecure for plain text", worker);
    }
    const auto wire = wireFromName(options.bufferFloatType);
    if (!wire) throw ConfigError("--buffer-float-type {} is not known (q80, f16, f32)", options.bufferFloatType);
    cluster.wire = *wire;
    if (flags.nodeWeights == "measured") {
        cluster.measuredWeights = true;
        cluster.rootSpeed = readBandwidth(root, pool);
    } else if (!flags.nodeWeights.empty()) {
        cluster.nodeWeights = parseWeights(flags.nodeWeights);
    }
    cluster.memoryLimit = offeredMemory(root, flags.memoryLimitMb << 20);
    cluster.collectives = openCollectives(root);
    if (flags.collectives != "auto") {
        cluster.collectivesWish = collectivesFromName(flags.collectives);
        if (!cluster.collectivesWish)
            throw ConfigError("--collectives {} is not known (auto, tcp, nccl, peer)", flags.collectives);
    }
    if (flags.expertPlacement == "whole")
        cluster.placement = ExpertPlacement::Whole;
    else if (flags.expertPlacement == "sliced")
        cluster.placement = ExpertPlacement::Sliced;
    else if (flags.expertPlacement != "auto")
        throw ConfigError("--expert-placement {} is not known (sliced, whole, auto)", flags.expertPlacement);
    if (flags.waitForWorkers < 0)
        throw ConfigError("--wait-for-workers is {}, must be 0 or more", flags.waitForWorkers);
    cluster.wait = std::chrono::seconds(flags.waitForWorkers);
    cluster.interrupted = interruptRaised;
    cluster.log = [status](const std::string& line) {
        fmt::print(status, "⭕ {}\n", printableLines(line));
        std::fflush(status);
    };
    cluster.progress = [lines = std::make_shared<TransferLines>(status)](int rank, const std::string& node, size_t done,
                                                                         size_t total) {
        lines->update(rank, node, done, total);
    };
    return cluster;
}

}  // namespace dllama
