#include <gtest/gtest.h>

#include <random>

#include "api-support.hpp"
#include "api/service.hpp"
#include "json-mutator.hpp"
#include "request-samples.hpp"

namespace dllama::api {
namespace {

using namespace test;

constexpr ChatFormat kFormats[] = {ChatFormat::Glm45,   ChatFormat::Intellect3, ChatFormat::MistralV3,
                                   ChatFormat::Llama31, ChatFormat::SolarOpen,  ChatFormat::None};

/// Whatever is thrown but ApiError fails the test. True if the request was taken.
bool survives(Dialect dialect, const std::string& body, ChatFormat format) {
    ReaderOptions options = kOptions;
    options.format = format;
    try {
        const GenerationRequest request = readGeneration(dialect, body, options);
        for (const Prompt& prompt : request.prompts)
            if (const auto* chat = std::get_if<ChatRequest>(&prompt)) renderPrompt(format, request, *chat);
        EXPECT_GE(request.nChoices(), 1);
        EXPECT_LE(request.nChoices(), options.maxChoices);
        EXPECT_FALSE(written(request, {content("x"), call("f", "{}")}, {end(EndReason::Stop)}).empty());
        return true;
    } catch (const ApiError& error) {
        EXPECT_EQ(error.status(), 400);
        EXPECT_LT(std::string_view(error.what()).size(), 2000u) << error.what();
        EXPECT_FALSE(errorBody(dialect, error).empty());
        return false;
    }
}

TEST(Mutations, SamplesAreTaken) {
    for (const RequestSample& sample : kRequestSamples)
        EXPECT_TRUE(survives(sample.dialect, std::string(sample.body), ChatFormat::Glm45)) << sample.body;
}

TEST(Mutations, OfJsonAreTakenOrRefused) {
    std::mt19937 random(14);
    int nTaken = 0, nRefused = 0;
    for (int round = 0; round < 3000; round++) {
        for (const RequestSample& sample : kRequestSamples) {
            std::string body(sample.body);
            for (unsigned n = 1 + random() % 4; n > 0; n--) body = dllama::test::mutateJson(body, random());
            (survives(sample.dialect, body, kFormats[random() % std::size(kFormats)]) ? nTaken : nRefused)++;
        }
    }
    // Both happen often, or the mutations test nothing.
    EXPECT_GT(nTaken, 500);
    EXPECT_GT(nRefused, 500);
}

TEST(Mutations, OfBytesAreTakenOrRefused) {
    std::mt19937 random(15);
    for (int round = 0; round < 2000; round++) {
        for (const RequestSample& sample : kRequestSamples) {
            std::string body(sample.body);
            for (unsigned n = 1 + random() % 3; n > 0; n--) body[random() % body.size()] = static_cast<char>(random());
            if (random() % 4 == 0) body.resize(random() % body.size());
            survives(sample.dialect, body, ChatFormat::Glm45);
            try {
                readCountTokens(body, kOptions);
                readTokenize(body);
                readDetokenize(body, kOptions);
            } catch (const ApiError&) {
                continue;
            }
        }
    }
}

}  // namespace
}  // namespace dllama::api
