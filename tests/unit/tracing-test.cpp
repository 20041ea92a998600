#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/errors.hpp"
#include "base/trace.hpp"
#include "cpu/cpu-backend.hpp"
#include "model-under-test.hpp"
#include "tiny-model.hpp"

namespace dllama::test {
namespace {

using Names = std::vector<std::string>;

struct Family {
    const char* architecture;
    Names lastLayer;  // its operations
};

class TracedDecoder : public testing::TestWithParam<Family> {};

/// Names of the operations within the event `outer`, in order.
Names within(const nlohmann::json& events, const nlohmann::json& outer) {
    const double begin = outer.at("ts");
    const double end = begin + outer.at("dur").get<double>();
    Names names;
    for (const auto& event : events) {
        if (event.at("ph") != "X" || event.at("cat") == "layer" || event.at("cat") == "step") continue;
        const double ts = event.at("ts");
        if (ts >= begin && ts + event.at("dur").get<double>() <= end + 0.01) names.push_back(event.at("name"));
    }
    return names;
}

TEST_P(TracedDecoder, ComputesTheSameAndTellsEachOperation) {
    const std::string path = testing::TempDir() + "/tracing-test.m";
    const std::string traced = path + ".json";
    writeTinyModel(path, tinyConfig(GetParam().architecture), DType::Q40);
    ModelUnderTest model(path, [](ThreadPool& pool) { return makeCpuBackend(pool, Isa::Generic); }, 1,
                         {.maxTokens = 16});
    const std::vector<int> tokens = {5, 9, 40, 2, 301, 304, 7};
    const std::vector<float> expected = model.logits(tokens);

    Trace trace(traced);
    Decoder decoder(model.arch, model.plan, 0, model.weights, *model.backend, model.alone, model.decoder->limits(),
                    {&trace});
    LocalForward forward(decoder);
    Engine engine(model.arch, model.embeddings, forward);
    std::vector<float> logits;
    engine.score(tokens, 0,
                 [&](int, std::span<const float> row) { logits.insert(logits.end(), row.begin(), row.end()); });
    EXPECT_EQ(logits, expected);

    trace.finish();
    std::ifstream file(traced);
    const auto events = nlohmann::json::parse(file).at("traceEvents");
    const auto layer = std::find_if(events.begin(), events.end(), [](const auto& e) { return e["name"] == "layer 1"; });
    ASSERT_NE(layer, events.end());
    EXPECT_EQ(within(events, *layer), GetParam().lastLayer);
    std::filesystem::remove(path);
    std::filesystem::remove(traced);
}

const Family kFamilies[] = {
    {"glm4", {"linear", "attend", "linear", "allReduce", "addNorm", "ffnUp", "linear", "allReduce", "addNorm"}},
    {"glm4moe", {"linear", "attend", "linear", "allReduce", "addNorm", "moe", "allReduce", "addNorm"}},
    {"glm4moelite",
     {"linear", "storeLatent", "normRows", "linear", "splitQueries", "linearPerHead", "latent attend", "linearPerHead",
      "linear", "allReduce", "addNorm", "moe", "allReduce", "addNorm"}},
    {"chatglm", {"linear", "attend", "linear", "allReduce", "addNorm", "ffnUp", "linear", "allReduce", "addNorm"}},
};
INSTANTIATE_TEST_SUITE_P(Families, TracedDecoder, testing::ValuesIn(kFamilies),
                         [](const auto& family) { return std::string(family.param.architecture); });

TEST(Trace, AFileThatCannotBeWrittenIsNamed) {
    EXPECT_THROW(Trace("/nowhere/trace.json"), FormatError);
    Trace full("/dev/full");
    EXPECT_THROW(full.finish(), FormatError);
}

}  // namespace
}  // namespace dllama::test
