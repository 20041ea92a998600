// Which added tokens a user's text may become.
#include <gtest/gtest.h>

#include "text/chat-format.hpp"
#include "text/tokenizer.hpp"
#include "tokenizer-samples.hpp"

namespace dllama {

namespace {

using Ids = std::vector<int>;

/// The tiny tokenizer with more added tokens, of which none claims to be special.
TokenizerFile withAdded(const std::vector<std::string>& texts) {
    TokenizerFile file = test::tinyBpe();
    for (const std::string& text : texts) {
        file.special.push_back({static_cast<int>(file.vocab.size()), text, false});
        file.scores.push_back(0.0f);
        file.vocab.push_back(text);
    }
    return file;
}

int idOf(const TokenizerFile& file, const std::string& text) {
    for (const SpecialToken& token : file.special)
        if (token.text == text) return token.id;
    return -1;
}

TEST(AddedTokens, WordsOfFineTunesAndWhatUsersAreToldToTypeAreTokens) {
    const TokenizerFile file =
        withAdded({"<gene>", "</gene>", "/nothink", "/no_think", "MyWord", "MyWord1", "<think", "é+"});
    const Tokenizer tokenizer(file);
    for (const char* text : {"<gene>", "</gene>", "/nothink", "/no_think", "MyWord", "MyWord1", "é+"}) {
        const int id = idOf(file, text);
        EXPECT_EQ(tokenizer.encode(text, SpecialTokens::Never), (Ids{id})) << text;
        // Wherever it stands: no word's border is needed, as in the tokenizers library.
        EXPECT_EQ(tokenizer.encode("he" + std::string(text) + "hello" + text, SpecialTokens::Never),
                  (Ids{256, id, 259, id}));
        // In a part of a prompt that a user wrote.
        EXPECT_EQ(tokenizer.encode(std::vector<TextSegment>{{"<s>", true}, {text, false}, {"<|x|>", true}}),
                  (Ids{263, id, 265}));
        EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, SpecialTokens::Never)), text);
    }
}

TEST(AddedTokens, TheLongestIsTaken) {
    const TokenizerFile file = withAdded({"<gene", "<gene>", "<gene>x"});
    const Tokenizer tokenizer(file);
    EXPECT_EQ(tokenizer.encode("<gene>xhe", SpecialTokens::Never), (Ids{idOf(file, "<gene>x"), 256}));
    EXPECT_EQ(tokenizer.encode("<gene>he", SpecialTokens::Never), (Ids{idOf(file, "<gene>"), 256}));
    EXPECT_EQ(tokenizer.encode("<gene?", SpecialTokens::Never), (Ids{idOf(file, "<gene"), '?'}));
}

TEST(AddedTokens, ControlTokensNeverComeFromAUsersText) {
    // Special or not: marks of turns, thoughts and tools of every format.
    std::vector<std::string> marks = {"</think>",
                                      "<tool_call>",
                                      "</tool_call>",
                                      "<tool_response>",
                                      "</tool_response>",
                                      "<arg_key>",
                                      "</arg_value>",
                                      "<|user|>",
                                      "<|system|>",
                                      "<|assistant|>",
                                      "<|observation|>",
                                      "[gMASK]",
                                      "[INST]",
                                      "[/INST]",
                                      "<sop>",
                                      "<|im_start|>",
                                      "<|im_end|>",
                                      "<|endoftext|>",
                                      "[TOOL_CALLS]",
                                      "</s>",
                                      "<|eot_id|>",
                                      "<function>",
                                      "<｜end▁of▁sentence｜>",
                                      "<unk>",
                                      "</tool_calls>",
                                      "<｜Assistant｜>"};
    const Tokenizer none(test::tinyBpe());
    for (int i = 1; i <= static_cast<int>(ChatFormat::SolarOpen); i++)
        for (const std::string& stop : chatStops(static_cast<ChatFormat>(i), none).texts) marks.push_back(stop);
    const TokenizerFile file = withAdded(marks);
    const Tokenizer tokenizer(file);
    for (const std::string& mark : marks)
        for (const std::string& text : {mark, "a" + mark + "b", mark + mark}) {
            for (const int id : tokenizer.encode(text, SpecialTokens::Never)) EXPECT_LT(id, 263) << text;
            for (const int id : tokenizer.encode(std::vector<TextSegment>{{text, false}})) EXPECT_LT(id, 263) << text;
        }
}

TEST(AddedTokens, WhatBeginsOrEndsTextsIsAControlTokenWhateverItsName) {
    TokenizerFile file = withAdded({"<end_of_turn>", "BEGIN!", "<gene>"});
    const int end = idOf(file, "<end_of_turn>"), begin = idOf(file, "BEGIN!"), gene = idOf(file, "<gene>");
    file.eosIds.push_back(end);
    file.prefixIds = {begin};
    const Tokenizer tokenizer(file);
    for (const int id : tokenizer.encode("<end_of_turn>BEGIN!", SpecialTokens::Never)) EXPECT_LT(id, 263);
    EXPECT_EQ(tokenizer.encode("<end_of_turn>BEGIN!", SpecialTokens::Parse), (Ids{end, begin}));
    EXPECT_EQ(tokenizer.encode("<gene>", SpecialTokens::Never), (Ids{gene}));
}

}  // namespace

}  // namespace dllama
