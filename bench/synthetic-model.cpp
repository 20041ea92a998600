#include "synthetic-model.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <functional>

#include "base/errors.hpp"
#include "format/legacy-model.hpp"
#include "tensor/blocks.hpp"
#include "tensor/half.hpp"

namespace dllama {

namespace {

/// Larger than any cache, so that equal stretches of two tensors are read from memory both times.
constexpr size_t kPoolBytes = size_t{64} << 20;

ModelConfig llama(int dim, int layers, int heads, int kvHeads, int ffn, int vocab) {
    ModelConfig c;
    c.architecture = "llama";
    c.hiddenSize = dim;
    c.nLayers = layers;
    c.nHeads = heads;
    c.nKvHeads = kvHeads;
    c.headDim = c.rotaryDim = dim / heads;
    c.intermediateSize = ffn;
    c.vocabSize = vocab;
    c.maxPositions = 8192;
    return c;
}

ModelConfig qwen3(int dim, int layers, int heads, int kvHeads, int ffn) {
    ModelConfig c = llama(dim, layers, heads, kvHeads, ffn, 151936);
    c.architecture = "qwen3";
    c.headDim = c.rotaryDim = 128;
    c.normEps = 1e-6f;
    c.ropeTheta = 1e6;
    return c;
}

ModelConfig glm4(int dim, int layers, int heads, int ffn) {
    ModelConfig c = llama(dim, layers, heads, 2, ffn, 151552);
    c.architecture = "glm4";
    c.headDim = 128;
    c.rotaryDim = 64;
    c.maxPositions = 32768;
    return c;
}

ModelConfig glm4moe(int layers) {
    ModelConfig c = glm4(4096, layers, 96, 10944);
    c.architecture = "glm4moe";
    c.nKvHeads = 8;
    c.attentionBias = true;
    c.ropeTheta = 1e6;
    c.nRoutedExperts = 128;
    c.nExpertsPerToken = 8;
    c.nSharedExperts = 1;
    c.moeIntermediateSize = 1408;
    c.firstMoeLayer = 1;
    c.scoringFunc = "sigmoid";
    return c;
}

}  // namespace

ModelConfig syntheticShape(const std::string& name) {
    const std::map<std::string, ModelConfig> shapes = {
        {"llama-1.1b", llama(2048, 22, 32, 4, 5632, 32000)},
        {"llama-3b", llama(3072, 28, 24, 8, 8192, 32000)},
        {"llama-8b", llama(4096, 32, 32, 8, 14336, 128256)},
        {"qwen3-14b", qwen3(5120, 40, 40, 8, 17408)},
        {"glm-4-9b", glm4(4096, 40, 32, 13696)},
        {"glm-4-32b", glm4(6144, 61, 48, 23040)},
        {"intellect-3", glm4moe(46)},
    };
    const auto found = shapes.find(name);
    if (found != shapes.end()) return found->second;
    std::string known;
    for (const auto& [key, config] : shapes) known += " " + key;
    throw ConfigError("shape {} is not known:{}", name, known);
}

DType syntheticType(const std::string& name) {
    std::string upper = name;
    for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const auto type = dtypeFromName(upper);
    if (!type) throw ConfigError("weight type {} is not known", name);
    return *type;
}

std::vector<TensorInfo> syntheticTensors(const ModelConfig& config, DType type) {
    if (legacyHeader(config, type)) return legacyTensors(config, type);
    std::vector<TensorInfo> tensors;
    for (const TensorDecl& decl : declareTensors(makeArchitecture(config)))
        tensors.push_back({decl.name, decl.isWeight ? type : DType::F32, decl.rows, decl.cols});
    return tensors;
}

std::vector<std::byte> randomValues(const TensorInfo& tensor, int64_t n, std::mt19937_64& random) {
    std::vector<std::byte> bytes(storedBytes(tensor.dtype, n));
    const float deviation = tensor.rows > 1 ? 1.0f / std::sqrt(static_cast<float>(tensor.cols)) : 0.02f;
    if (isQuantized(tensor.dtype)) {
        for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
            const uint64_t value = random();
            std::memcpy(bytes.data() + i, &value, 8);
        }
        const auto setScales = [&](float scale) {
            const uint16_t stored = f32ToF16(scale);
            for (size_t at = 0; at < bytes.size(); at += blockBytes(tensor.dtype))
                for (int i = 0; i + 2 <= dtypeInfo(tensor.dtype).headBytes; i += 2)
                    std::memcpy(bytes.data() + at + i, &stored, 2);
        };
        // How much uniform codes deviate is seen in a few blocks of them.
        std::vector<float> sample(std::min<int64_t>(n, 64 * blockValues(tensor.dtype)));
        setScales(1.0f);
        dequantize(tensor.dtype, bytes.data(), sample.data(), static_cast<int64_t>(sample.size()));
        double squares = 0.0;
        for (const float value : sample) squares += value * value;
        setScales(deviation / static_cast<float>(std::sqrt(squares / static_cast<double>(sample.size()))));
        return bytes;
    }
    const bool isNorm = tensor.name.find("norm.weight") != std::string::npos;
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) {
        const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;
        value = (isNorm ? 1.0f : 0.0f) + deviation * static_cast<float>(3.4641 * (uniform - 0.5));
    }
    quantize(tensor.dtype, values.data(), bytes.data(), n);
    return bytes;
}

SyntheticSource::SyntheticSource(const ModelConfig& config, DType type) {
    std::mt19937_64 random(1);
    for (const TensorInfo& tensor : syntheticTensors(config, type)) {
        tensors_[tensor.name] = tensor;
        const bool isNorm = tensor.name.find("norm.weight") != std::string::npos;
        std::vector<std::byte>& pool = pools_[{fmt::format("{}{}", dtypeName(tensor.dtype), isNorm), tensor.cols}];
        const size_t block = blockBytes(tensor.dtype) * 4096;
        const size_t wanted = std::min(tensor.bytes(), kPoolBytes / block * block);
        if (pool.size() < wanted)
            pool = randomValues(
                tensor, static_cast<int64_t>(wanted / blockBytes(tensor.dtype)) * blockValues(tensor.dtype), random);
    }
}

const TensorInfo& SyntheticSource::info(std::string_view name) const {
    const auto found = tensors_.find(std::string(name));
    if (found == tensors_.end()) throw FormatError("synthetic model: no tensor {}", name);
    return found->second;
}

std::span<const std::byte> SyntheticSource::read(const TensorSlice& slice, std::vector<std::byte>& scratch) const {
    const TensorInfo& tensor = info(slice.name);
    const bool isNorm = tensor.name.find("norm.weight") != std::string::npos;
    const std::vector<std::byte>& pool = pools_.at({fmt::format("{}{}", dtypeName(tensor.dtype), isNorm), tensor.cols});
    const size_t bytes = static_cast<size_t>(slice.rows()) * storedBytes(tensor.dtype, slice.cols());
    const size_t room = pool.size() > bytes ? (pool.size() - bytes) / blockBytes(tensor.dtype) : 0;
    const size_t start = std::hash<std::string>{}(slice.name) % (room + 1) * blockBytes(tensor.dtype);
    if (bytes <= pool.size()) return std::span(pool).subspan(start, bytes);
    scratch.resize(bytes);
    for (size_t at = 0; at < bytes; at += pool.size())
        std::memcpy(scratch.data() + at, pool.data(), std::min(pool.size(), bytes - at));
    return scratch;
}

}  // namespace dllama
