// libFuzzer target: any body of a request is understood, rendered and answered, or refused with an ApiError. The first
// byte says which API it is sent to and for which chat format; JSON is changed as JSON.

#include <cstdint>
#include <cstring>
#include <string>

#include "api/answer-writer.hpp"
#include "api/request-reader.hpp"
#include "api/service.hpp"
#include "json-mutator.hpp"

namespace {

using namespace dllama;

constexpr ChatFormat kFormats[] = {ChatFormat::Glm45,     ChatFormat::Glm49bChat, ChatFormat::Intellect3,
                                   ChatFormat::MistralV3, ChatFormat::Llama31,    ChatFormat::SolarOpen};

void answer(const api::GenerationRequest& request) {
    const auto writer = api::makeAnswerWriter(request, {.id = "a", .model = "m"});
    writer->begin({.promptTokens = 1});
    for (int choice = 0; choice < request.nChoices(); choice++) {
        writer->add({choice, {OutputDelta::Kind::Reasoning, "r", "", 0}, {}});
        writer->add({choice, {OutputDelta::Kind::Content, "c", "", 0}, {}});
        writer->add({choice, {OutputDelta::Kind::Call, "{}", "f", 0}, {}});
        writer->end({choice, api::EndReason::Stop, "", {}});
    }
    writer->finish({.promptTokens = 1, .completionTokens = 3}, {});
}

void serve(uint8_t how, std::string_view body) {
    const ChatFormat format = kFormats[how / 8 % std::size(kFormats)];
    const api::ReaderOptions options = {.format = format, .vocabSize = 1000, .maxChoices = 8};
    switch (how % 8) {
        case 4:
            api::readTokenize(body);
            return;
        case 5:
            api::readDetokenize(body, options);
            return;
        case 6:
            api::readCountTokens(body, options);
            return;
    }
    const api::GenerationRequest request = api::readGeneration(static_cast<api::Dialect>(how % 4), body, options);
    for (const api::Prompt& prompt : request.prompts)
        if (const auto* chat = std::get_if<ChatRequest>(&prompt)) api::renderPrompt(format, request, *chat);
    answer(request);
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t maxSize);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t maxSize, unsigned seed) {
    if (size == 0 || seed % 4 == 0) return LLVMFuzzerMutate(data, size, maxSize);
    if (seed % 16 == 1) data[0] = static_cast<uint8_t>(seed >> 8);
    const std::string json = test::mutateJson({reinterpret_cast<const char*>(data) + 1, size - 1}, seed);
    if (json.size() + 1 > maxSize) return size;
    std::memcpy(data + 1, json.data(), json.size());
    return json.size() + 1;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    try {
        serve(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
    } catch (const api::ApiError&) {
        return 0;
    }
    return 0;
}
