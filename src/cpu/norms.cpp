#include "cpu/norms.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace dllama {

namespace {

/// 32 lanes are eight vectors of the compiler's, which every base instruction set has.
constexpr int kLanes = 32;
using Lanes4 = float __attribute__((vector_size(16)));

/// Sums term(i) over [0, n) in the order of Backend::addNorm. termLanes(i) returns the terms i..i+3.
template <typename TermLanes, typename Term>
float laneSum(int n, const TermLanes& termLanes, const Term& term) {
    constexpr int kPiece = 256;
    Lanes4 sums[kLanes / 4] = {};
    for (int begin = 0; begin < n; begin += kPiece) {
        const int end = std::min(begin + kPiece, n);
        Lanes4 piece[kLanes / 4] = {};
        int i = begin;
        for (; i + kLanes <= end; i += kLanes)
            for (int j = 0; j < kLanes / 4; j++) piece[j] += termLanes(i + 4 * j);
        if (i < end) {
            float lanes[kLanes];
            std::memcpy(lanes, piece, sizeof lanes);
            for (; i < end; i++) lanes[i % kLanes] += term(i);
            std::memcpy(piece, lanes, sizeof lanes);
        }
        for (int j = 0; j < kLanes / 4; j++) sums[j] += piece[j];
    }
    float lanes[kLanes];
    std::memcpy(lanes, sums, sizeof lanes);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

inline Lanes4 load(const float* p) {
    Lanes4 lanes;
    std::memcpy(&lanes, p, sizeof lanes);
    return lanes;
}

/// (x - shift) * scale is x normalised, without weight and bias.
struct Normalizer {
    float shift = 0.0f;
    float scale = 1.0f;
};

Normalizer normalizerOf(const Norm& norm, const float* x, int n) {
    const auto count = static_cast<float>(n);
    Normalizer result;
    float squares;
    if (norm.kind == Norm::Kind::Rms) {
        squares = laneDot(x, x, n);
    } else {
        const float sum = laneSum(
            n, [&](int i) { return load(x + i); }, [&](int i) { return x[i]; });
        const float mean = result.shift = sum / count;
        squares = laneSum(
            n,
            [&](int i) {
                const Lanes4 centred = load(x + i) - mean;
                return centred * centred;
            },
            [&](int i) { return (x[i] - mean) * (x[i] - mean); });
    }
    result.scale = 1.0f / std::sqrt(squares / count + norm.eps);
    return result;
}

constexpr double kInverseFactorials[] = {
    1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
    1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

/// e^x by range reduction and Taylor series in double, rounded to float.
float portableExp(float x) {
    const double clamped = std::clamp(static_cast<double>(x), -104.0, 89.0);
    const double n = std::floor(clamped * 1.4426950408889634 + 0.5);
    const double r = clamped - n * 0.6931471805599453;
    double sum = kInverseFactorials[13];
    for (int k = 12; k >= 0; k--) sum = sum * r + kInverseFactorials[k];
    const double power = std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52);
    return static_cast<float>(sum * power);
}

/// Writes the places of the k largest of n >= k values, in falling order; of equal values the first comes first.
void largestK(const float* values, int n, int k, int32_t* places) {
    int found = 0;
    for (int i = 0; i < n; i++) {
        if (found == k && !(values[i] > values[places[k - 1]])) continue;
        if (found < k) found++;
        int at = found - 1;
        for (; at > 0 && values[i] > values[places[at - 1]]; at--) places[at] = places[at - 1];
        places[at] = i;
    }
}

/// Leaves only the experts of the best groups in the running.
void dropGroups(const Router& router, float* choice, float* rank) {
    const int width = router.nExperts / router.nGroups;
    for (int g = 0; g < router.nGroups; g++) {
        const float* members = choice + g * width;
        int32_t best[2];
        largestK(members, width, std::min(2, width), best);
        rank[g] = members[best[0]] + (width > 1 ? members[best[1]] : 0.0f);
    }
    for (int g = 0; g < router.nGroups; g++) {
        int better = 0;
        for (int other = 0; other < router.nGroups; other++)
            better += rank[other] > rank[g] || (rank[other] == rank[g] && other < g);
        if (better >= router.topGroups) std::fill_n(choice + g * width, width, -std::numeric_limits<float>::infinity());
    }
}

}  // namespace

float laneDot(const float* a, const float* b, int n) {
    return laneSum(
        n, [&](int i) { return load(a + i) * load(b + i); }, [&](int i) { return a[i] * b[i]; });
}

void normalize(const Norm& norm, const float* x, float* out, int n) {
    const auto [shift, scale] = normalizerOf(norm, x, n);
    const float* weight = norm.weight.data;
    if (norm.kind == Norm::Kind::Rms) {
        for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
    } else {
        for (int i = 0; i < n; i++) out[i] = (x[i] - shift) * scale * weight[i] + norm.bias.data[i];
    }
}

void addNormalized(const Norm& norm, const float* y, float* x, int n) {
    const auto [shift, scale] = normalizerOf(norm, y, n);
    const float* weight = norm.weight.data;
    if (norm.kind == Norm::Kind::Rms) {
        for (int i = 0; i < n; i++) x[i] += y[i] * scale * weight[i];
    } else {
        for (int i = 0; i < n; i++) x[i] += (y[i] - shift) * scale * weight[i] + norm.bias.data[i];
    }
}

void chooseExperts(const Router& router, float* logits, float* choice, int32_t* experts, float* weights) {
    const int n = router.nExperts;
    float* scores = logits;
    if (router.score == Router::Score::Sigmoid) {
        for (int e = 0; e < n; e++) scores[e] = 1.0f / (1.0f + portableExp(-logits[e]));
    } else {
        const float largest = *std::max_element(logits, logits + n);
        float sum = 0.0f;
        for (int e = 0; e < n; e++) sum += scores[e] = portableExp(logits[e] - largest);
        for (int e = 0; e < n; e++) scores[e] /= sum;
    }
    for (int e = 0; e < n; e++) choice[e] = scores[e] + (router.bias.data ? router.bias.data[e] : 0.0f);
    if (router.nGroups > 1) dropGroups(router, choice, choice + n);

    largestK(choice, n, router.topK, experts);
    float sum = 0.0f;
    for (int k = 0; k < router.topK; k++) sum += scores[experts[k]];
    const float divisor = router.normalize ? sum + 1e-20f : 1.0f;
    for (int k = 0; k < router.topK; k++) weights[k] = scores[experts[k]] / divisor * router.scale;
}

}  // namespace dllama
