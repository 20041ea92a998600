#include <gtest/gtest.h>

#include "api-support.hpp"
#include "api/json-fields.hpp"

namespace dllama::api {
namespace {

using namespace test;

TEST(Body, MustBeAnObjectOfValidJson) {
    for (const char* body : {"", "{\"model\": ", "{\"messages\": [}", "{} {}", "\xFF", "{\"a\": \"\xC3\"}", "{'a': 1}",
                             "{\"a\": \"\\ud800\"}", "{\"a\": 1e999}", "nan"}) {
        SCOPED_TRACE(body);
        const ApiError error = errorOf([&] { parseBody(body); });
        EXPECT_EQ(error.status(), 400);
        EXPECT_TRUE(std::string(error.what()).starts_with("the body is not valid JSON: fault at byte "))
            << error.what();
    }
    EXPECT_STREQ(errorOf([] { parseBody("[]"); }).what(), "the body is a list of 0, must be a JSON object");
    EXPECT_STREQ(errorOf([] { parseBody("\"x\""); }).what(), "the body is \"x\", must be a JSON object");
    EXPECT_STREQ(errorOf([] { parseBody("null"); }).what(), "the body is null, must be a JSON object");
}

TEST(Body, DepthIsLimitedBeforeAnythingIsBuilt) {
    const auto nested = [](size_t depth) {
        return "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
    };
    EXPECT_NO_THROW(parseBody(nested(kMaxBodyDepth - 1)));
    EXPECT_STREQ(errorOf([&] { parseBody(nested(kMaxBodyDepth)); }).what(),
                 "the body is JSON nested deeper than 64 levels");
    EXPECT_STREQ(errorOf([&] { parseBody("{\"a\":" + std::string(5'000'000, '[')); }).what(),
                 "the body is JSON nested deeper than 64 levels");
}

TEST(Body, NumberOfValuesIsLimited) {
    std::string list = "{\"a\":[0";
    for (size_t i = 0; i < kMaxBodyValues; i++) list += ",0";
    EXPECT_STREQ(errorOf([&] { parseBody(list + "]}"); }).what(), "the body is JSON of more than 1000000 values");
}

TEST(Errors, ShowLittleOfWhatIsLong) {
    const std::string message =
        errorOf([] {
            readCompletion("{\"prompt\": \"a\", \"temperature\": \"" + std::string(100'000, 'x') + "\"}", kOptions);
        }).what();
    EXPECT_EQ(message, "temperature is \"" + std::string(64, 'x') + "...\", must be a number from 0 to 2");
}

TEST(Errors, InEachApisForm) {
    const ApiError error = invalidRequest("n", "n is {}", 0);
    EXPECT_EQ(errorBody(Dialect::Responses, error),
              R"({"error":{"message":"n is 0","type":"invalid_request_error","param":"n","code":null}})");
    EXPECT_EQ(errorBody(Dialect::Messages, error),
              R"({"type":"error","error":{"type":"invalid_request_error","message":"n is 0"}})");
    EXPECT_EQ(modelNotFound("m").status(), 404);
    EXPECT_EQ(errorBody(Dialect::Chat, modelNotFound("m")),
              R"({"error":{"message":"the model \"m\" is not served here","type":"invalid_request_error",)"
              R"("param":"model","code":"model_not_found"}})");
    EXPECT_EQ(Json::parse(errorBody(Dialect::Messages, modelNotFound("m")))["error"]["type"], "not_found_error");
    const ApiError tooLong = contextTooLong(2000, 1024);
    EXPECT_EQ(tooLong.status(), 400);
    EXPECT_EQ(Json::parse(errorBody(Dialect::Chat, tooLong))["error"]["code"], "context_length_exceeded");
    EXPECT_STREQ(tooLong.what(),
                 "the prompt has 2000 tokens; the context length is 1024 tokens and must hold the answer as well");
}

}  // namespace
}  // namespace dllama::api
