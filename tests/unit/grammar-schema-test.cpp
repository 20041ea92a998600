#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/errors.hpp"
#include "grammar-walk.hpp"
#include "grammar/answer-grammars.hpp"

namespace dllama::grammar {
namespace {

using nlohmann::ordered_json;

ordered_json readCases(const std::string& name) {
    std::ifstream file(std::string(DLLAMA_TEST_DATA "/grammar/") + name);
    return ordered_json::parse(file);
}

class GrammarSchemaTest : public testing::Test {
  protected:
    Tokenizer tokenizer_{test::jsonTokenizer()};
    AnswerGrammars grammars_{tokenizer_, ChatFormat::None};

    /// The text, byte by byte, is a whole answer.
    bool accepts(TokenConstraint& constraint, std::string_view text) const {
        std::vector<uint32_t> bits((static_cast<size_t>(tokenizer_.vocabSize()) + 31) / 32);
        for (char c : text) {
            const int token = static_cast<uint8_t>(c);
            constraint.mask(bits);
            if (!(bits[static_cast<size_t>(token) / 32] >> (token % 32) & 1)) return false;
            constraint.accept(token);
        }
        return constraint.mayEnd();
    }
};

TEST_F(GrammarSchemaTest, AcceptsAndRefusesTheTable) {
    for (const auto& one : readCases("schemas.json")) {
        const std::string schema = one["schema"].dump();
        for (const auto& text : one["accept"])
            EXPECT_TRUE(accepts(*grammars_.jsonSchema(schema, Thoughts::None), text.get<std::string>()))
                << one["name"] << ": " << text.get<std::string>();
        for (const auto& text : one["refuse"])
            EXPECT_FALSE(accepts(*grammars_.jsonSchema(schema, Thoughts::None), text.get<std::string>()))
                << one["name"] << ": " << text.get<std::string>();
    }
}

TEST_F(GrammarSchemaTest, WhatCannotBeHonouredNamesTheKeywordAndItsPlace) {
    for (const auto& one : readCases("refused.json")) {
        try {
            grammars_.jsonSchema(one["schema"].dump(), Thoughts::None);
            ADD_FAILURE() << one["schema"] << " is compiled";
        } catch (const ConfigError& error) {
            EXPECT_NE(std::string(error.what()).find(one["words"].get<std::string>()), std::string::npos)
                << one["schema"] << ": " << error.what();
        }
    }
}

/// A mask is right for tokens of several bytes: exactly those are allowed whose bytes are, one by one.
TEST_F(GrammarSchemaTest, MasksAgreeWithTheBytes) {
    for (const auto& one : readCases("schemas.json")) {
        const std::string schema = one["schema"].dump();
        const auto walked = grammars_.jsonSchema(schema, Thoughts::None);
        std::vector<uint32_t> bits((static_cast<size_t>(tokenizer_.vocabSize()) + 31) / 32);
        std::vector<int> taken;
        std::mt19937 random(7);
        for (int n = 0; n < 25 && !walked->mustEnd(); n++) {
            walked->mask(bits);
            std::vector<int> allowed;
            for (int id = 0; id < tokenizer_.vocabSize(); id++) {
                const auto fresh = grammars_.jsonSchema(schema, Thoughts::None);
                const bool isAllowed = bits[static_cast<size_t>(id) / 32] >> (id % 32) & 1;
                if (isAllowed) allowed.push_back(id);
                if (id % 3 != n % 3) continue;  // a third of the tokens at each step
                for (int token : taken) fresh->accept(token);
                bool byBytes = !tokenizer_.isSpecial(id);
                try {
                    if (byBytes)
                        for (char c : tokenizer_.piece(id)) fresh->accept(static_cast<uint8_t>(c));
                } catch (const Error&) {
                    byBytes = false;
                }
                ASSERT_EQ(isAllowed, byBytes) << one["name"] << " step " << n << " token " << tokenizer_.piece(id);
            }
            ASSERT_FALSE(allowed.empty());
            taken.push_back(allowed[random() % allowed.size()]);
            walked->accept(taken.back());
        }
    }
}

TEST_F(GrammarSchemaTest, RandomAnswersAreJson) {
    int whole = 0, all = 0;
    for (const auto& one : readCases("schemas.json")) {
        for (unsigned seed = 0; seed < 20; seed++, all++) {
            const auto text = test::walk(*grammars_.jsonSchema(one["schema"].dump(), Thoughts::None), tokenizer_, seed);
            if (!text) continue;
            whole++;
            EXPECT_TRUE(ordered_json::accept(*text)) << one["name"] << ": " << *text;
        }
    }
    EXPECT_GT(whole, all * 95 / 100);
    for (unsigned seed = 0; seed < 100; seed++) {
        const auto text = test::walk(*grammars_.jsonObject(Thoughts::None), tokenizer_, seed);
        if (text) {
            EXPECT_TRUE(ordered_json::parse(*text).is_object()) << *text;
        }
    }
}

TEST_F(GrammarSchemaTest, NothingFollowsAWholeText) {
    const auto constraint = grammars_.jsonSchema(R"({"type":"boolean"})", Thoughts::None);
    EXPECT_FALSE(constraint->mayEnd());
    for (char c : std::string("true")) constraint->accept(c);
    EXPECT_TRUE(constraint->mayEnd());
    EXPECT_TRUE(constraint->mustEnd());
    EXPECT_THROW(constraint->accept(' '), Error);
    const auto number = grammars_.jsonSchema(R"({"type":"integer"})", Thoughts::None);
    number->accept('1');
    EXPECT_TRUE(number->mayEnd());
    EXPECT_FALSE(number->mustEnd());
}

}  // namespace
}  // namespace dllama::grammar
