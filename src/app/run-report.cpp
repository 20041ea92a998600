#include "app/run-report.hpp"

#include <fmt/format.h>

namespace dllama {

namespace {

unsigned milliseconds(double seconds) {
    return static_cast<unsigned>(seconds * 1000.0 + 0.5);
}

void printTable(const char* title, int nTokens, double seconds) {
    const double rate = seconds > 0.0 ? nTokens / seconds : 0.0;
    fmt::print("    nTokens: {}\n   tokens/s: {:3.2f} ({:3.2f} ms/tok)\n{}", nTokens, rate,
               nTokens > 0 ? seconds * 1000.0 / nTokens : 0.0, title);
}

void printNodes(const ClusterForward& cluster) {
    const std::vector<std::string> names = cluster.nodes();
    const std::vector<std::optional<NodeStatistics>> nodes = cluster.nodeStatistics();
    fmt::print("Nodes                     Compute      Sync  Sync p50  Sync p99      Sent  Received\n");
    for (size_t rank = 0; rank < names.size(); rank++) {
        fmt::print("   {:<20}", names[rank]);
        if (const auto& node = nodes[rank])
            fmt::print("{:>7} ms{:>7} ms{:>7.0f} us{:>7.0f} us{:>7} kB{:>7} kB\n", milliseconds(node->computeSeconds),
                       milliseconds(node->sync.seconds), node->sync.p50Us, node->sync.p99Us, node->sync.bytesSent >> 10,
                       node->sync.bytesReceived >> 10);
        else
            fmt::print("  has not told in time\n");
    }
}

}  // namespace

void printEvaluated(const StepReport& step) {
    fmt::print("🔷️ Eval{:5} ms Sync{:5} ms | Sent{:6} kB Recv{:6} kB | ({} tokens)\n", milliseconds(step.seconds),
               milliseconds(step.traffic.syncSeconds), step.traffic.sentBytes >> 10, step.traffic.receivedBytes >> 10,
               step.nPrefillTokens);
}

void printPredicted(const StepReport& step, const std::string& piece) {
    fmt::print("🔶 Pred{:5} ms Sync{:5} ms | Sent{:6} kB Recv{:6} kB | {}\n", milliseconds(step.seconds),
               milliseconds(step.traffic.syncSeconds), step.traffic.sentBytes >> 10, step.traffic.receivedBytes >> 10,
               piece);
}

void RunReport::add(const StepReport& step) {
    // A step that mixes both counts as prompt: that is what its time goes to.
    if (step.nPrefillTokens > 0) {
        nBatches_++;
        nPrompt_ += step.nPrefillTokens;
        promptSeconds_ += step.seconds;
    } else {
        nAnswer_ += step.nDecodeTokens;
        answerSeconds_ += step.seconds;
    }
}

void RunReport::print(const ClusterForward* cluster) const {
    fmt::print("\nEvaluation\n   nBatches: {}\n", nBatches_);
    printTable("Prediction\n", nPrompt_, promptSeconds_);
    printTable("", nAnswer_, answerSeconds_);
    if (cluster != nullptr) printNodes(*cluster);
}

}  // namespace dllama
