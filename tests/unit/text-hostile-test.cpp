// Tokenizers from strangers: patterns that take for ever, sentencepiece models that lead their library astray.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/errors.hpp"
#include "sentencepiece-sample.hpp"
#include "text/pre-tokenizer.hpp"
#include "text/sentencepiece-model.hpp"

namespace dllama::test {
namespace {

double secondsOf(const std::string& pattern, const std::string& text, std::string& message) {
    const PreTokenizer splitter({pattern});
    const clock_t begin = std::clock();
    message.clear();
    try {
        splitter.split(text);
    } catch (const Error& error) {
        message = error.what();
    }
    return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

TEST(HostilePattern, IsGivenUp) {
    std::string message;
    const std::string many(300'000, 'a');
    // Each begin looks through the rest of the text; each backtracks twice as often as the one before; cubic.
    for (const auto& [pattern, text] : {std::pair{"(?=.*z)a", many},
                                        {"(a+)+[bc]", many.substr(0, 60)},
                                        {"(?:a|aa)+[bc]", many.substr(0, 5000)},
                                        {"a*a*a*[bc]", many.substr(0, 100'000)}}) {
        EXPECT_LT(secondsOf(pattern, text, message), 5.0) << pattern;
        EXPECT_TRUE(message.find("pattern takes more than") != std::string::npos ||
                    message.find("pattern fails on this text") != std::string::npos)
            << pattern << ": " << message;
    }
}

TEST(HostilePattern, PublishedOnesHaveTheTimeTheyNeed) {
    constexpr const char* kLlama3 =
        R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    std::string message, mixed;
    for (int i = 0; i < 50'000; i++) mixed += i % 3 == 0 ? "word " : i % 3 == 1 ? "1234\n" : "\u6a21\u578b  ";
    for (const std::string& text : {std::string(1'000'000, ' '), std::string(1'000'000, 'x'),
                                    std::string(1'000'000, '\n'), std::string(1'000'000, '!'), mixed}) {
        EXPECT_LT(secondsOf(kLlama3, text, message), 1.0);
        EXPECT_EQ(message, "");
    }
    // A match may begin anywhere behind characters that belong to none.
    const PreTokenizer digits({"\\d+"});
    const std::string text = std::string(10'000, 'x') + "12" + std::string(1000, 'y') + "\u6a21" + "3";
    ASSERT_EQ(digits.split(text).size(), 4u);
    EXPECT_EQ(digits.split(text)[1], "12");
    EXPECT_EQ(digits.split(text)[3], "3");
    std::string wide;
    for (int i = 0; i < 1000; i++) wide += "\u6a21";
    EXPECT_EQ(digits.split(wide + "7").size(), 2u);
}

std::string refusalOf(const std::string& bytes) {
    try {
        std::vector<int> ids;
        SentencePieceModel(bytes, "").encode("aaaab", ids);
        return "";
    } catch (const FormatError& error) {
        return error.what();
    }
}

TEST(HostileSentencePiece, WhatIsSoundIsUsed) {
    std::vector<int> ids;
    SentencePieceModel(sampleSentencePieceModel(SampleTrie().charsmap()), "").encode("a", ids);
    EXPECT_EQ(ids, std::vector<int>{2});
    ids.clear();
    SentencePieceModel(sampleSentencePieceModel(""), "").encode("a", ids);
    EXPECT_EQ(ids, std::vector<int>{1});
}

TEST(HostileSentencePiece, ADamagedCharsmapIsRefused) {
    const auto refused = [](const char* reason, const std::function<void(SampleTrie&)>& damage) {
        SampleTrie trie;
        damage(trie);
        EXPECT_EQ(refusalOf(sampleSentencePieceModel(trie.charsmap())),
                  std::string("the sentencepiece model is damaged: ") + reason);
    };
    const char* const kOut = "the charsmap leads out of its table";
    refused(kOut, [](SampleTrie& t) { t.units[0] = SampleTrie::unit(0, false, 1024); });
    refused(kOut, [](SampleTrie& t) { t.units[0] = SampleTrie::unit(0, false, (1 << 21) - 1) | 0x200; });
    refused(kOut, [](SampleTrie& t) {
        t.units.resize(1000), t.units[256 ^ 'a'] = SampleTrie::unit('a', true, 800 ^ 256 ^ 'a');
    });
    refused("the charsmap names a text behind its end", [](SampleTrie& t) { t.units[512] = 1u << 31 | 4; });
    refused("the charsmap has a text without an end", [](SampleTrie& t) { t.texts = std::string(300, 'x') + '\0'; });
    refused("the charsmap has a text that is not UTF-8", [](SampleTrie& t) { t.texts[0] = '\x80'; });
    refused("the charsmap's texts do not end", [](SampleTrie& t) { t.texts.back() = 'x'; });
    refused("the length of the charsmap is impossible", [](SampleTrie& t) { t.units.resize(1 << 19); });
    refused("the length of the charsmap is impossible", [](SampleTrie& t) { t.texts.clear(); });
    // "a" after "a" is a match for ever.
    refused("the charsmap matches too many texts at once",
            [](SampleTrie& t) { t.units[512 ^ 'a'] = SampleTrie::unit('a', true, 'a'); });
    EXPECT_EQ(refusalOf(sampleSentencePieceModel(std::string(3, '\0'))),
              "the sentencepiece model is damaged: a charsmap without a length");
}

TEST(HostileSentencePiece, ScoresAreNumbers) {
    for (const float score : {NAN, std::numeric_limits<float>::infinity(), -1e30f})
        EXPECT_NE(refusalOf(sampleSentencePieceModel("", score)).find("a score that is no number"), std::string::npos)
            << score;
    EXPECT_EQ(refusalOf(sampleSentencePieceModel("", -1e9f)), "");
}

TEST(HostileSentencePiece, DamageNeverCrashes) {
    std::mt19937 random(3);
    const std::string good = sampleSentencePieceModel(SampleTrie().charsmap());
    int nRefused = 0;
    for (int i = 0; i < 3000; i++) {
        std::string bad = good;
        for (unsigned j = 0; j <= random() % 40; j++) {
            // The units that are in use, of which there are three, or any byte.
            constexpr size_t kUsed[] = {0, 256 ^ 'a', 512};
            const size_t units = good.size() - 6 - 4 * 1024;
            const size_t at =
                random() % 2 == 0 ? units + 4 * kUsed[random() % 3] + random() % 4 : random() % bad.size();
            bad[at] = static_cast<char>(random());
        }
        nRefused += !refusalOf(bad).empty();
    }
    EXPECT_GT(nRefused, 1000);
}

}  // namespace
}  // namespace dllama::test
