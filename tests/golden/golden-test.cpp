// The tiny reference models, converted to F32 by our converter, against logits of transformers (float32).

#include <gtest/gtest.h>

#include <cstring>

#include "backend/reference-backend.hpp"
#include "base/cpu-features.hpp"
#include "cpu/cpu-backend.hpp"
#include "golden-case.hpp"
#include "model-under-test.hpp"
#ifdef DLLAMA_HAS_CUDA
#include "gpu/cuda-backend.hpp"
#endif

namespace dllama::test {
namespace {

struct Variant {
    std::string model;
    std::string backend;  // "reference", "cuda" or an instruction set
    int nThreads;
};

std::unique_ptr<Backend> makeBackend(const std::string& name, ThreadPool& pool) {
    if (name == "reference") return makeReferenceBackend();
#ifdef DLLAMA_HAS_CUDA
    if (name == "cuda") return makeCudaBackend();
#endif
    for (Isa isa : {Isa::Generic, Isa::Avx2, Isa::Avx512Vnni, Isa::Amx, Isa::Neon})
        if (name == isaName(isa)) return makeCpuBackend(pool, isa);
    throw std::invalid_argument(name);
}

std::vector<Variant> variants() {
    std::vector<Variant> all;
    for (const char* model :
         {"glm4-dense", "glm-hf-bias", "glm4moe-16x2", "glm4moe-128x8", "llama", "qwen3", "qwen3moe", "glm-4-9b-chat",
          "chatglm-6b", "qwen2", "solar-open", "glm45v-text", "glm41v-text", "glm-ocr-text", "glm47flash"}) {
        all.push_back({model, "reference", 1});
        for (Isa isa : {Isa::Generic, Isa::Avx2, Isa::Avx512Vnni, Isa::Amx, Isa::Neon})
            for (int threads : {1, 2})
                if (isaSupported(isa)) all.push_back({model, isaName(isa), threads});
#ifdef DLLAMA_HAS_CUDA
        if (!cudaDevices().empty()) all.push_back({model, "cuda", 1});
#endif
    }
    return all;
}

/// gtest prints it with a failure.
void PrintTo(const Variant& v, std::ostream* out) {
    *out << v.model << ", " << v.backend << ", " << v.nThreads << " threads";
}

class Golden : public testing::TestWithParam<Variant> {
  protected:
    ModelUnderTest load(DecoderLimits limits) {
        const Variant& s = GetParam();
        limits.kvType = DType::F32;
        return ModelUnderTest(
            std::string(DLLAMA_GOLDEN_MODELS) + "/" + s.model + "-f32.m",
            [&](ThreadPool& pool) { return makeBackend(s.backend, pool); }, s.nThreads, limits);
    }
    GoldenCase golden() { return GoldenCase(DLLAMA_TEST_DATA "/golden/" + GetParam().model); }
};

TEST_P(Golden, LogitsOfEveryRecordedRow) {
    const GoldenCase reference = golden();
    ModelUnderTest model = load({.maxTokens = 512, .maxOutputs = 512});
    double largest = 0.0;
    size_t compared = 0, recorded = 0;
    for (const GoldenPrompt& prompt : reference.prompts) {
        recorded += static_cast<size_t>(prompt.nRows) * reference.vocab;
        const std::vector<float> logits = model.logits(prompt.prompt);
        for (size_t t = 0; t < prompt.prompt.size(); t++) {
            const std::span<const float> expected = reference.row(prompt, static_cast<int>(t));
            if (expected.empty()) continue;
            compared += expected.size();
            largest = std::max(
                largest, largestDifference(std::span(logits).subspan(t * reference.vocab, reference.vocab), expected));
        }
    }
    EXPECT_EQ(compared, recorded);
    EXPECT_EQ(recorded, reference.logits.size());
    EXPECT_LE(largest, logitTolerance(model.arch.config.isLatent()));
    RecordProperty("largest_difference", std::to_string(largest));
    std::printf("%s %s: largest difference of a logit %.2e\n", GetParam().model.c_str(), GetParam().backend.c_str(),
                largest);
}

TEST_P(Golden, GreedyTokens) {
    const GoldenCase reference = golden();
    ModelUnderTest model = load({.maxTokens = 512});
    for (const GoldenPrompt& prompt : reference.prompts)
        expectGreedy(model.greedy(prompt.prompt, static_cast<int>(prompt.greedy.size())), prompt,
                     logitTolerance(model.arch.config.isLatent()));
}

TEST_P(Golden, ChunkedPrefillIsBitIdentical) {
    if (GetParam().backend == "cuda") GTEST_SKIP() << "kernels for few and for many tokens add in different orders";
    const GoldenCase reference = golden();
    ModelUnderTest whole = load({.maxTokens = 512, .maxOutputs = 512});
    if (whole.arch.prefixMask) GTEST_SKIP() << "a prefix that is seen in both directions is never chunked";
    std::vector<int> sizes = {5};
    if (whole.arch.config.isLatent()) sizes = {1, 7, 64};
    for (const int size : sizes) {
        ModelUnderTest chunked = load({.maxTokens = size, .maxOutputs = size});
        for (const GoldenPrompt& prompt : reference.prompts) {
            const std::vector<float> a = whole.logits(prompt.prompt), b = chunked.logits(prompt.prompt);
            EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << "in chunks of " << size;
        }
    }
}

TEST_P(Golden, FourSequencesInOneBatch) {
    const GoldenCase reference = golden();
    ModelUnderTest model = load({.maxTokens = 512, .maxOutputs = 4});
    const size_t n = std::min<size_t>(ModelUnderTest::nSequences, reference.prompts.size());
    for (size_t i = 0; i < n; i++) {
        const GoldenPrompt& prompt = reference.prompts[i];
        model.engine->submit({prompt.prompt, {.temperature = 0.0f}, {static_cast<int>(prompt.greedy.size()), {}}});
    }
    int mixedSteps = 0;
    std::vector<std::vector<int>> answers(n);
    while (model.engine->running()) {
        const StepReport report = model.engine->step();
        mixedSteps += report.events.size() > 1;
        for (const TokenEvent& event : report.events) answers.at(event.request).push_back(event.token);
    }
    EXPECT_GT(mixedSteps, 0);
    for (size_t i = 0; i < n; i++)
        expectGreedy(answers[i], reference.prompts[i], logitTolerance(model.arch.config.isLatent()));
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(variants()), [](const auto& info) {
    std::string name = info.param.model + "_" + info.param.backend + "_" + std::to_string(info.param.nThreads);
    for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    return name;
});

}  // namespace
}  // namespace dllama::test
