#include "api/service.hpp"

#include <gtest/gtest.h>

#include "api-support.hpp"

namespace dllama::api {
namespace {

using namespace test;

TEST(Service, Models) {
    const ServedModel model = {.id = "story", .created = 1700000000, .contextLength = 1024, .vocabSize = 4096};
    const Json list = Json::parse(modelsBody({model}));
    EXPECT_EQ(list["object"], "list");
    EXPECT_EQ(list["data"], Json::array({Json::parse(modelBody(model))}));
    EXPECT_EQ(list["first_id"], "story");
    EXPECT_EQ(Json::parse(modelBody(model)),
              Json::parse(R"({"id": "story", "object": "model", "created": 1700000000, "owned_by": "dllama",
                  "type": "model", "display_name": "story", "created_at": "2023-11-14T22:13:20Z",
                  "meta": {"n_ctx_train": 1024, "n_vocab": 4096}, "max_model_len": 1024})"));
}

TEST(Service, Tokenize) {
    const TokenizeRequest plain = readTokenize(R"({"content": "a"})");
    EXPECT_EQ(plain.content, "a");
    EXPECT_FALSE(plain.addSpecial || plain.withPieces);
    EXPECT_TRUE(plain.parseSpecial);
    const TokenizeRequest other =
        readTokenize(R"({"content": "", "add_special": true, "parse_special": false, "with_pieces": true})");
    EXPECT_TRUE(other.addSpecial && other.withPieces && !other.parseSpecial);
    EXPECT_STREQ(errorOf([] { readTokenize("{}"); }).what(), "content is missing");
    EXPECT_STREQ(errorOf([] { readTokenize(R"({"content": 5})"); }).what(), "content is 5, must be a text");
    EXPECT_EQ(tokensBody({1, 2}), R"({"tokens":[1,2]})");
    EXPECT_EQ(piecesBody({{1, "é"}, {2, "\xC3"}}), R"({"tokens":[{"id":1,"piece":"é"},{"id":2,"piece":[195]}]})");
}

TEST(Service, Detokenize) {
    EXPECT_EQ(readDetokenize(R"({"tokens": [1, 999]})", kOptions), (std::vector<int>{1, 999}));
    EXPECT_TRUE(readDetokenize(R"({"tokens": []})", kOptions).empty());
    EXPECT_STREQ(errorOf([] { readDetokenize(R"({"tokens": [1000]})", kOptions); }).what(),
                 "tokens is 1000, must be a whole number from 0 to 999");
    EXPECT_EQ(detokenizedBody("a\xFF"), R"({"content":"a�"})");
}

TEST(Service, Others) {
    EXPECT_EQ(countTokensBody(5), R"({"input_tokens":5})");
    EXPECT_EQ(embeddingsNotOffered().status(), 501);
    const Json props = Json::parse(propsBody({.modelName = "story",
                                              .chatTemplate = "t",
                                              .buildInfo = "b",
                                              .contextLength = 1024,
                                              .nParallel = 8,
                                              .defaults = {.temperature = 0.5f}}));
    EXPECT_EQ(props["default_generation_settings"], Json::parse(R"({"n_ctx": 1024, "params": {"temperature": 0.5}})"));
    EXPECT_EQ(props["total_slots"], 8);
}

}  // namespace
}  // namespace dllama::api
