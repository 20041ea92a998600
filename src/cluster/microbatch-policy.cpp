#include "cluster/microbatch-policy.hpp"

namespace dllama {

namespace {

/// What a thread of a fast processor (AVX-512 VNNI) multiplies and adds in a prefill, in a microsecond. With a slower
/// one the first batch may go in microbatches in vain; then collectives have been measured.
constexpr double kProductsPerUs = 200'000.0;

}  // namespace

bool MicrobatchPolicy::decide(int nTokens) {
    if (nTokens < kMinTokens || !possible_) return false;
    if (wish_) return *wish_;
    return ++nBatches_ % kMeasureEvery != 2 && share_ > kWorthwhileShare;
}

void MicrobatchPolicy::measured(int nTokens, double share) {
    if (nTokens >= kMinTokens) share_ = share;
}

double expectedCollectiveShare(const Architecture& arch, int nRanks, int nThreads, int nTokens, Wire wire,
                               const LineCost& cost) {
    const ModelConfig& c = arch.config;
    double products = 0.0;  // of a token
    for (const TensorDecl& decl : declareTensors(arch)) {
        if (decl.isWeight && decl.layer >= 0)
            products += activeShare(c, decl) * static_cast<double>(decl.rows) * static_cast<double>(decl.cols);
    }
    const double computeUs = products / nRanks / (kProductsPerUs * nThreads);
    const size_t bytes = wireBytes(wire, static_cast<size_t>(nTokens) * c.hiddenSize);
    const double allReduceUs = TcpCommunicator::allReduceUs(cost, nRanks, bytes) / nTokens;
    const double collectiveUs = 2.0 * c.nLayers * allReduceUs;
    return collectiveUs / (collectiveUs + computeUs);
}

}  // namespace dllama
