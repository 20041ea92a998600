#include <gtest/gtest.h>
#include <xxhash.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/errors.hpp"
#include "format/model-layout.hpp"
#include "tiny-model.hpp"

namespace dllama::test {
namespace {

namespace fs = std::filesystem;

std::string readAll(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void writeAll(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// Opens a file and reads every tensor, as a load does.
void readWhole(const std::string& path) {
    const ModelFile file(path);
    const Architecture arch = makeArchitecture(file.config());
    checkTensors(arch, file, path);
    std::vector<std::byte> scratch;
    for (const TensorInfo& tensor : file.tensors()) file.read(file.whole(tensor.name), scratch);
}

std::string messageOf(const std::string& path) {
    try {
        readWhole(path);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

class ModelFileTest : public testing::TestWithParam<std::pair<const char*, DType>> {
  protected:
    std::string path(const std::string& name) const {
        return testing::TempDir() + "/" + GetParam().first + "-" + dtypeName(GetParam().second) + "-" + name;
    }
};

TEST_P(ModelFileTest, WhatIsWrittenIsRead) {
    const auto [architecture, type] = GetParam();
    const ModelConfig config = tinyConfig(architecture);
    const std::string file = path("whole.m");
    writeTinyModel(file, config, type);
    EXPECT_FALSE(fs::exists(file + ".part"));
    const ModelFile model(file);
    readWhole(file);
    const bool legacy = legacyHeader(config, type).has_value();
    EXPECT_EQ(model.tensorHash("final_norm.weight") == 0, legacy);
    EXPECT_EQ(model.weightType(), type);
    EXPECT_EQ(model.config().hiddenSize, config.hiddenSize);
    EXPECT_EQ(model.config().nRoutedExperts, config.nRoutedExperts);
    EXPECT_EQ(model.config().scoringFunc, config.scoringFunc);
    if (!legacy) {
        EXPECT_EQ(modelConfigToJson(model.config()), modelConfigToJson(config));
    }
}

TEST_P(ModelFileTest, SlicesAreTheMiddleOfTheWhole) {
    const auto [architecture, type] = GetParam();
    const std::string file = path("slices.m");
    writeTinyModel(file, tinyConfig(architecture), type);
    const ModelFile model(file);
    const std::string name = "layers.1.attn.o.weight";
    const TensorInfo& info = model.info(name);
    std::vector<std::byte> scratch, scratchPart;
    std::vector<float> whole(static_cast<size_t>(info.rows * info.cols)), part(3 * 64);
    dequantize(type, model.read(model.whole(name), scratch).data(), whole.data(), info.rows * info.cols);
    dequantize(type, model.read({name, 2, 5, 32, 96}, scratchPart).data(), part.data(), 3 * 64);
    for (int r = 0; r < 3; r++)
        for (int c = 0; c < 64; c++) EXPECT_EQ(part[r * 64 + c], whole[(r + 2) * info.cols + c + 32]);
}

TEST_P(ModelFileTest, ATruncatedOrPaddedFileIsRefusedByName) {
    const auto [architecture, type] = GetParam();
    const std::string file = path("cut.m");
    writeTinyModel(file, tinyConfig(architecture), type);
    const std::string bytes = readAll(file);
    std::mt19937 random(7);
    for (int i = 0; i < 60; i++) {
        writeAll(file, bytes.substr(0, 1 + random() % (bytes.size() - 1)));
        const std::string message = messageOf(file);
        EXPECT_TRUE(message.starts_with(file + ": ")) << message;
        EXPECT_EQ(message.find('\n'), std::string::npos);
    }
    writeAll(file, bytes + "more");
    EXPECT_NE(messageOf(file).find("behind its last tensor"), std::string::npos);
    writeAll(file, bytes.substr(0, bytes.size() - 1));
    EXPECT_NE(messageOf(file).find("truncated"), std::string::npos);
    EXPECT_NE(messageOf(file).find("tensor"), std::string::npos);
}

TEST_P(ModelFileTest, FlippedBitsNeverCrash) {
    const auto [architecture, type] = GetParam();
    const std::string file = path("flip.m");
    const ModelConfig config = tinyConfig(architecture);
    writeTinyModel(file, config, type);
    const bool hashed = !legacyHeader(config, type);
    const std::string bytes = readAll(file);
    const ModelFile model(file);
    std::mt19937 random(11);
    const size_t header = hashed ? 6000 : 200;
    for (int i = 0; i < 300; i++) {
        std::string damaged = bytes;
        const size_t at = (i % 2 ? random() % bytes.size() : random() % std::min(header, bytes.size()));
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
        writeAll(file, damaged);
        const std::string message = messageOf(file);  // a crash ends the test
        if (!hashed || !message.empty()) continue;
        // Only padding between tensors may change unnoticed.
        for (const TensorInfo& t : model.tensors()) {
            std::vector<std::byte> scratch;
            const auto view = model.read(model.whole(t.name), scratch);
            const size_t begin = bytes.find(std::string(reinterpret_cast<const char*>(view.data()), view.size()));
            EXPECT_FALSE(at >= begin && at < begin + view.size()) << "a flip in " << t.name << " went unnoticed";
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Files, ModelFileTest,
                         testing::Values(std::pair("llama", DType::Q40), std::pair("qwen3", DType::F32),
                                         std::pair("qwen3moe", DType::Q80), std::pair("llama", DType::BF16),
                                         std::pair("glm", DType::F16), std::pair("glm4", DType::Q40),
                                         std::pair("glm4moe", DType::Q80), std::pair("glm4moelite", DType::Q40),
                                         std::pair("chatglm", DType::F32)));

TEST(ModelFileErrors, ForeignFilesAreNamed) {
    const std::string file = testing::TempDir() + "/foreign.m";
    writeAll(file, "GGUF and then some more bytes");
    EXPECT_EQ(messageOf(file), file + ": not a .m model file (magic 0x46554747)");
    writeAll(file, std::string("\0\xcd\xab\0", 4) + std::string(60, '\0'));
    EXPECT_NE(messageOf(file), "");
}

/// A described file whose header and hash are right, whatever its JSON says.
std::string describedFile(const std::string& json) {
    const uint64_t hash = XXH3_64bits(json.data(), json.size());
    const uint32_t header[] = {kModelMagic, 48,
                               0,           1,
                               1,           static_cast<uint32_t>(kArchDescribed),
                               100,         static_cast<uint32_t>(json.size()),
                               101,         static_cast<uint32_t>(hash),
                               102,         static_cast<uint32_t>(hash >> 32)};
    std::string file(reinterpret_cast<const char*>(header), sizeof header);
    file += json;
    file.resize(described::dataBegin(json.size()));
    return file;
}

TEST(HostileFile, DeepNestingIsRefused) {
    const std::string file = testing::TempDir() + "/deep.m";
    const std::string nest = std::string(200'000, '[') + std::string(200'000, ']');
    writeAll(file, describedFile(nest));
    EXPECT_EQ(messageOf(file), file + ": the model description is not a JSON object of at most 64 levels");
    writeAll(file, describedFile(R"({"format":1,"name":"","architecture":"glm","tensors":[],"config":)" + nest + "}"));
    EXPECT_EQ(messageOf(file), file + ": the model description is not a JSON object of at most 64 levels");
}

TEST(HostileFile, SizesThatWrapAreRefused) {
    const std::string file = testing::TempDir() + "/wrap.m";
    for (const char* type : {"F32", "F16"}) {
        const auto json = [&](size_t offset) {
            return fmt::format(R"({{"format":1,"name":"","architecture":"glm4","config":{},"tensors":)"
                               R"([["w","{}",[2147483648,2147483648],{:6},"0000000000000000"]]}})",
                               modelConfigToJson(tinyConfig("glm4")), type, offset);
        };
        writeAll(file, describedFile(json(described::dataBegin(json(0).size()))));
        const std::string message = messageOf(file);
        EXPECT_NE(message.find("w: 2147483648 x "), std::string::npos) << message;
        EXPECT_NE(message.find("more than any memory holds"), std::string::npos) << message;
    }
}

TEST(HostileFile, TensorsThatAreComputedAsOneHaveOneType) {
    const std::string file = testing::TempDir() + "/mixed.m";
    const ModelConfig config = tinyConfig("glm4moe");
    const auto messageWith = [&](const std::string& name, DType type) {
        std::vector<TensorInfo> tensors = fileTensors(config, DType::Q40);
        for (TensorInfo& t : tensors)
            if (t.name == name) t.dtype = type;
        writeModelFile(file, config, DType::Q40, tensors,
                       [](const TensorInfo& t) { return std::vector<std::byte>(t.bytes()); });
        return messageOf(file);
    };
    EXPECT_EQ(
        messageWith("layers.1.attn.k.weight", DType::Q80),
        file + ": tensor layers.1.attn.k.weight is Q80 and layers.1.attn.q.weight is Q40: they must be of one type");
    for (const char* name : {"layers.0.attn.v.weight", "layers.0.ffn.up.weight", "layers.1.moe.experts.3.gate.weight",
                             "layers.1.moe.experts.7.down.weight", "layers.1.moe.shared.up.weight"})
        EXPECT_NE(messageWith(name, DType::F16).find("of one type"), std::string::npos) << name;
    // What stands alone may have any.
    for (const char* name : {"token_embedding.weight", "layers.0.attn.o.weight", "layers.0.ffn.down.weight",
                             "layers.1.moe.shared.down.weight", "head.weight"})
        EXPECT_EQ(messageWith(name, DType::F16), "") << name;
    EXPECT_NE(messageWith("final_norm.weight", DType::F16).find("must be F32"), std::string::npos);
}

/// The most memory that this process ever held, in kB.
size_t peakKilobytes() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;)
        if (word == "VmHWM:") {
            size_t kilobytes = 0;
            status >> kilobytes;
            return kilobytes;
        }
    return 0;
}

TEST(HostileFile, ASmallFileOfALargeModelCostsLittle) {
    const std::string file = testing::TempDir() + "/small.m";
    // 144 bytes: 1024 layers of 128 experts, and no tensor at all.
    const auto legacy = [&](int32_t layers, int32_t experts) {
        const std::vector<int32_t> pairs = {0,  0,     1,  0xABCD02, 2,  64, 3,  0,   4,  layers, 5,  4,
                                            6,  4,     7,  experts,  8,  1,  9,  100, 10, 64,     11, 1,
                                            12, 10000, 13, 2,        19, 16, 20, 6,   21, 64};
        std::vector<int32_t> header = {static_cast<int32_t>(kModelMagic), static_cast<int32_t>(8 + 4 * pairs.size())};
        header.insert(header.end(), pairs.begin(), pairs.end());
        return std::string(reinterpret_cast<const char*>(header.data()), 4 * header.size());
    };
    const size_t before = peakKilobytes();
    writeAll(file, legacy(1024, 1024));
    EXPECT_EQ(messageOf(file), file + ": num_hidden_layers x n_routed_experts is 1048576, must be from 0 to 131072");
    writeAll(file, legacy(1024, 128));
    EXPECT_NE(messageOf(file).find("token_embedding.weight needs 25600 bytes"), std::string::npos) << messageOf(file);
    ModelConfig large = tinyConfig("glm4moe");
    large.nLayers = 1024;
    large.nRoutedExperts = 128;
    writeAll(file,
             describedFile(fmt::format(R"({{"format":1,"name":"","architecture":"glm4moe","config":{},"tensors":[]}})",
                                       modelConfigToJson(large))));
    EXPECT_EQ(messageOf(file), file + ": there is no tensor token_embedding.weight");
    EXPECT_LT(peakKilobytes() - before, 8u << 10);
}

TEST(LegacyHeader, StatesWhatItCanAndNothingElse) {
    ModelConfig c = tinyConfig("llama");
    ASSERT_TRUE(legacyHeader(c, DType::Q40));
    EXPECT_FALSE(legacyHeader(c, DType::BF16));
    c.ropeTheta = 10000.5;
    EXPECT_FALSE(legacyHeader(c, DType::Q40));
    c = tinyConfig("llama");
    c.normEps = 2e-5;
    EXPECT_FALSE(legacyHeader(c, DType::Q40));
    EXPECT_FALSE(legacyHeader(tinyConfig("glm4"), DType::Q40));
    ModelConfig moe = tinyConfig("qwen3moe");
    ASSERT_TRUE(legacyHeader(moe, DType::Q40));
    moe.normTopkProb = false;
    EXPECT_FALSE(legacyHeader(moe, DType::Q40));
}

TEST(ModelConfigJson, RefusesUnknownAndImpossibleFields) {
    std::string good = modelConfigToJson(tinyConfig("glm4moe"));
    EXPECT_EQ(modelConfigToJson(modelConfigFromJson(good, "x")), good);
    const auto refuses = [&](const std::string& from, const std::string& to, const std::string& word) {
        std::string text = good;
        const size_t at = text.find(from);
        ASSERT_NE(at, std::string::npos) << from;
        text.replace(at, from.size(), to);
        try {
            modelConfigFromJson(text, "x");
            ADD_FAILURE() << "accepted " << to;
        } catch (const FormatError& error) {
            EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
        }
    };
    refuses("\"hidden_size\":128", "\"hidden_size\":128,\"window\":3", "window = 3");
    refuses("\"hidden_size\":128", "\"hidden_size\":-5", "hidden_size");
    refuses("\"hidden_size\":128", "\"hidden_size\":99999999999", "hidden_size");
    refuses("\"hidden_size\":128", "\"hidden_size\":\"big\"", "hidden_size");
    refuses("\"head_dim\":32", "\"head_dim\":4000", "head_dim is 4000, must be from 8 to 256");
    refuses("\"num_key_value_heads\":2", "\"num_key_value_heads\":3", "no multiple of num_key_value_heads 3");
    refuses("\"scoring_func\":\"sigmoid\"", "\"scoring_func\":\"tanh\"", "tanh");

    good = modelConfigToJson(tinyConfig("glm4moelite"));
    EXPECT_EQ(modelConfigToJson(modelConfigFromJson(good, "x")), good);
    refuses("\"kv_lora_rank\":64", "\"kv_lora_rank\":65", "kv_lora_rank 65 is no multiple of 32");
    refuses("\"kv_lora_rank\":64", "\"kv_lora_rank\":8192", "kv_lora_rank is 8192, must be from 0 to 4096");
    refuses("\"v_head_dim\":64", "\"v_head_dim\":16", "v_head_dim is 16");
    refuses("\"head_dim\":48", "\"head_dim\":64", "head_dim 64 is not qk_nope_head_dim 32 and rotary_dim 16");
}

}  // namespace
}  // namespace dllama::test
