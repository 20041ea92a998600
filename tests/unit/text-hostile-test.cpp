// Tokenizers from strangers: patterns that take for ever, sentencepiece models that lead their library astray.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/errors.hpp"
#include "text/pre-tokenizer.hpp"
#include "text/sentencepiece-model.hpp"

namespace dllama {
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

/// A protobuf field of bytes, of which there are fewer than 2^28.
std::string field(int number, const std::string& bytes) {
    std::string out(1, static_cast<char>(number << 3 | 2));
    for (size_t n = bytes.size();; n >>= 7) {
        out += static_cast<char>((n & 0x7f) | (n >= 0x80 ? 0x80 : 0));
        if (n < 0x80) return out + bytes;
    }
}
std::string number(int field, int value) {
    return {static_cast<char>(field << 3), static_cast<char>(value)};
}
std::string piece(const std::string& text, float score, int type = 1) {
    std::string bytes(4, '\0');
    std::memcpy(bytes.data(), &score, 4);
    return field(1, field(1, text) + static_cast<char>(2 << 3 | 5) + bytes + number(3, type));
}

/// Replaces "a" by "b" (and "aa..." by "c" in a trie whose every "a" is a match).
struct Trie {
    std::vector<uint32_t> units = std::vector<uint32_t>(1024);
    std::string texts = std::string("b\0c\0", 4);

    static uint32_t unit(uint32_t label, bool hasValue, uint32_t offset) {
        return label | (hasValue ? 0x100u : 0u) | offset << 10;
    }
    Trie() {
        units[0] = unit(0, false, 256);                       // from the root to position 256
        units[256 ^ 'a'] = unit('a', true, 512 ^ 256 ^ 'a');  // by "a" to position 512
        units[512] = 1u << 31 | 0;                            // whose value is the text at 0
    }
    std::string charsmap() const {
        const auto bytes = static_cast<uint32_t>(4 * units.size());
        std::string out(4 + bytes, '\0');
        std::memcpy(out.data(), &bytes, 4);
        std::memcpy(out.data() + 4, units.data(), bytes);
        return out + texts;
    }
};

std::string model(const std::string& charsmap, float score = -1.0f) {
    return piece("<unk>", 0.0f, 2) + piece("a", -2.0f) + piece("b", score) + field(2, number(3, 2)) +
           field(3, field(1, "own") + field(2, charsmap) + number(3, 0));
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
    SentencePieceModel(model(Trie().charsmap()), "").encode("a", ids);
    EXPECT_EQ(ids, std::vector<int>{2});
    ids.clear();
    SentencePieceModel(model(""), "").encode("a", ids);
    EXPECT_EQ(ids, std::vector<int>{1});
}

TEST(HostileSentencePiece, ADamagedCharsmapIsRefused) {
    const auto refused = [](const char* reason, const std::function<void(Trie&)>& damage) {
        Trie trie;
        damage(trie);
        EXPECT_EQ(refusalOf(model(trie.charsmap())), std::string("the sentencepiece model is damaged: ") + reason);
    };
    const char* const kOut = "the charsmap leads out of its table";
    refused(kOut, [](Trie& t) { t.units[0] = Trie::unit(0, false, 1024); });
    refused(kOut, [](Trie& t) { t.units[0] = Trie::unit(0, false, (1 << 21) - 1) | 0x200; });
    refused(kOut, [](Trie& t) { t.units.resize(1000), t.units[256 ^ 'a'] = Trie::unit('a', true, 800 ^ 256 ^ 'a'); });
    refused("the charsmap names a text behind its end", [](Trie& t) { t.units[512] = 1u << 31 | 4; });
    refused("the charsmap has a text without an end", [](Trie& t) { t.texts = std::string(300, 'x') + '\0'; });
    refused("the charsmap has a text that is not UTF-8", [](Trie& t) { t.texts[0] = '\x80'; });
    refused("the charsmap's texts do not end", [](Trie& t) { t.texts.back() = 'x'; });
    refused("the length of the charsmap is impossible", [](Trie& t) { t.units.resize(1 << 19); });
    refused("the length of the charsmap is impossible", [](Trie& t) { t.texts.clear(); });
    // "a" after "a" is a match for ever.
    refused("the charsmap matches too many texts at once",
            [](Trie& t) { t.units[512 ^ 'a'] = Trie::unit('a', true, 'a'); });
    EXPECT_EQ(refusalOf(model(std::string(3, '\0'))),
              "the sentencepiece model is damaged: a charsmap without a length");
}

TEST(HostileSentencePiece, ScoresAreNumbers) {
    for (const float score : {NAN, std::numeric_limits<float>::infinity(), -1e30f})
        EXPECT_NE(refusalOf(model("", score)).find("a score that is no number"), std::string::npos) << score;
    EXPECT_EQ(refusalOf(model("", -1e9f)), "");
}

TEST(HostileSentencePiece, DamageNeverCrashes) {
    std::mt19937 random(3);
    const std::string good = model(Trie().charsmap());
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
}  // namespace dllama
