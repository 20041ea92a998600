#include <gtest/gtest.h>

#include <random>

#include "base/errors.hpp"
#include "text/nfc.hpp"
#include "text/pre-tokenizer.hpp"
#include "text/tokenizer.hpp"
#include "text/utf8.hpp"
#include "tokenizer-samples.hpp"

namespace dllama {
namespace {

using Ids = std::vector<int>;

TEST(Tokenizer, MergesByRank) {
    const Tokenizer tokenizer(test::tinyBpe());
    EXPECT_EQ(tokenizer.encode("hello", SpecialTokens::Never), Ids{259});
    EXPECT_EQ(tokenizer.encode("hellhe", SpecialTokens::Never), (Ids{258, 256}));
    EXPECT_EQ(tokenizer.encode("hello world", SpecialTokens::Never), (Ids{259, 260, 261, 'l', 'd'}));
    EXPECT_EQ(tokenizer.encode("", SpecialTokens::Never), Ids{});
}

TEST(Tokenizer, MergesByList) {
    TokenizerFile file = test::tinyBpe();
    file.merges = {{'l', 'l'}, {'h', 'e'}, {256, 257}};
    const Tokenizer tokenizer(file);
    // "hello" is in the vocabulary, but no merge leads to it.
    EXPECT_EQ(tokenizer.encode("hello", SpecialTokens::Never), (Ids{258, 'o'}));
    EXPECT_EQ(tokenizer.encode("lll", SpecialTokens::Never), (Ids{257, 'l'}));
    file.ignoreMerges = true;
    EXPECT_EQ(Tokenizer(file).encode("hello", SpecialTokens::Never), Ids{259});
}

TEST(Tokenizer, MergesByScore) {
    const Tokenizer tokenizer(test::tinyScored());
    // " bab" has the pairs " b" (none), "ba" (none) and "ab"; "bab" only comes from "b" and "ab".
    EXPECT_EQ(tokenizer.encode("bab", SpecialTokens::Never), (Ids{263, 262}));
    EXPECT_EQ(tokenizer.encode("ab", SpecialTokens::Never), (Ids{261}));        // " a", then " ab"
    EXPECT_EQ(tokenizer.encode("aab", SpecialTokens::Never), (Ids{259, 260}));  // " a" and "ab"
    EXPECT_EQ(tokenizer.encode("你", SpecialTokens::Never), (Ids{263, 266}));
    EXPECT_EQ(tokenizer.encode("é", SpecialTokens::Never), (Ids{263, 3 + 0xC3, 3 + 0xA9}));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("ab 你é  b", SpecialTokens::Never)), "ab 你é  b");
    EXPECT_EQ(tokenizer.encode("a", SpecialTokens::Never, true), (Ids{1, 259}));
}

/// The definition, without heap or list.
Ids mergeSlowly(const TokenizerFile& file, const std::string& piece) {
    std::vector<std::string> parts;
    for (char c : piece) parts.emplace_back(1, c);
    const auto idOf = [&](const std::string& text) {
        for (size_t id = 0; id < 263; id++) {
            if (file.vocab[id] == text) return static_cast<int>(id);
        }
        return -1;
    };
    for (;;) {
        int best = -1;
        size_t at = 0;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            const int id = idOf(parts[i] + parts[i + 1]);
            if (id < 0 || (best >= 0 && id >= best)) continue;
            best = id;
            at = i;
        }
        if (best < 0) break;
        parts[at] += parts[at + 1];
        parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
    Ids ids;
    for (const std::string& part : parts) ids.push_back(idOf(part));
    return ids;
}

TEST(Tokenizer, HeapEqualsTheDefinition) {
    TokenizerFile file = test::tinyBpe();
    const char* tokens[] = {"aa", "ab", "ba", "aaa", "bab", "aab", "abba"};
    for (size_t i = 0; i < std::size(tokens); i++) file.vocab[256 + i] = tokens[i];
    file.patterns = {"[^c]+"};
    const Tokenizer tokenizer(file);
    std::mt19937 random(7);
    for (int round = 0; round < 2000; round++) {
        std::string text;
        const size_t n = 1 + random() % 24;
        for (size_t i = 0; i < n; i++) text += random() % 2 ? 'a' : 'b';
        const Ids whole = tokenizer.encode(text, SpecialTokens::Never);
        if (whole.size() == 1) continue;  // taken whole by tiktoken's rule
        EXPECT_EQ(whole, mergeSlowly(file, text)) << text;
    }
}

TEST(Tokenizer, ParsesSpecialTokensOnlyWhereAllowed) {
    const Tokenizer tokenizer(test::tinyBpe());
    EXPECT_EQ(tokenizer.encode("<s>he<|x|>", SpecialTokens::Parse), (Ids{263, 256, 265}));
    for (int id : tokenizer.encode("<s>he<|x|><think>", SpecialTokens::Never)) EXPECT_LT(id, 263);
    EXPECT_EQ(tokenizer.encode("he", SpecialTokens::Never, true), (Ids{263, 256}));
    TokenizerFile file = test::tinyBpe();
    file.prefixIds = {265, 263};
    file.suffixIds = {264};
    EXPECT_EQ(Tokenizer(file).encode("he", SpecialTokens::Never, true), (Ids{265, 263, 256, 264}));
    file.special[2].text = "<s>s";  // the longest wins
    EXPECT_EQ(Tokenizer(file).encode("<s>s<s>", SpecialTokens::Parse), (Ids{265, 263}));
}

TEST(Tokenizer, KnowsItsTokens) {
    const Tokenizer tokenizer(test::tinyBpe());
    EXPECT_EQ(tokenizer.vocabSize(), 266);
    EXPECT_EQ(tokenizer.piece(259), "hello");
    EXPECT_EQ(tokenizer.piece(-1), "");
    EXPECT_EQ(tokenizer.piece(266), "");
    EXPECT_EQ(tokenizer.specialId("<think>"), 264);
    EXPECT_EQ(tokenizer.specialId("hello"), std::nullopt);
    EXPECT_TRUE(tokenizer.isEos(265));
    EXPECT_FALSE(tokenizer.isEos(264));
    EXPECT_FALSE(tokenizer.isEos(1000));
    EXPECT_FALSE(tokenizer.isHidden(264));
    EXPECT_TRUE(tokenizer.isHidden(263));
}

TEST(Tokenizer, PlainTextOnBothSidesOfABorderIsOne) {
    const Tokenizer tokenizer(test::tinyBpe());
    const std::vector<TextSegment> split = {{"<s>he", true}, {"ll", false}, {"o", true}, {"<s>", false}};
    Ids expected = {263, 259};
    for (int id : tokenizer.encode("<s>", SpecialTokens::Never)) expected.push_back(id);
    EXPECT_EQ(tokenizer.encode(split), expected);
    const std::vector<TextSegment> apart = {{"he", false, true}, {"llo", false, true}};
    EXPECT_EQ(tokenizer.encode(apart), (Ids{256, 257, 'o'}));
}

TEST(Tokenizer, ReadsInvalidUtf8AsReplacementCharacters) {
    const Tokenizer tokenizer(test::tinyBpe());
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xFF\xC3z", SpecialTokens::Never)), "a\uFFFD\uFFFDz");
    const std::vector<TextSegment> segments = {{"\xF0\x9F", false}, {"\x98\x80", true}};
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(segments)), "😀");
}

TEST(Tokenizer, RefusesFilesThatDoNotFit) {
    TokenizerFile file = test::tinyBpe();
    file.vocab[65] = "AA";
    EXPECT_THROW(Tokenizer{file}, FormatError);
    file = test::tinyBpe();
    file.patterns = {"(unclosed"};
    EXPECT_THROW(Tokenizer{file}, FormatError);
    file = test::tinyBpe();
    file.merges = {{'x', 'y'}};
    EXPECT_THROW(Tokenizer{file}, FormatError);
    file = test::tinyScored();
    file.kind = TokenizerFile::Kind::SentencePiece;
    file.model = "no model";
    EXPECT_THROW(Tokenizer{file}, FormatError);
}

TEST(Tokenizer, TakesNLogNOnOnePiece) {
    // A quadratic method would need minutes for this.
    const Tokenizer tokenizer(test::tinyBpe());
    const std::string text = std::string(500'000, 'l') + std::string(500'000, 'h');
    EXPECT_EQ(tokenizer.encode(text, SpecialTokens::Never).size(), 750'000u);
}

TEST(StreamDecoder, NeverGivesHalfACharacter) {
    const Tokenizer tokenizer(test::tinyBpe());
    StreamDecoder decoder(tokenizer);
    EXPECT_EQ(decoder.push(0xF0), "");
    EXPECT_EQ(decoder.push(0x9F), "");
    EXPECT_EQ(decoder.push(0x98), "");
    EXPECT_EQ(decoder.push(0x80), "😀");
    EXPECT_EQ(decoder.push(0xE4), "");
    EXPECT_EQ(decoder.push('a'), "\uFFFDa");
    EXPECT_EQ(decoder.push(0xC3), "");
    EXPECT_EQ(decoder.push(264), "\uFFFD<think>");  // printed, though a token of its own
    EXPECT_EQ(decoder.push(263), "");
    EXPECT_EQ(decoder.push(0xE4), "");
    EXPECT_EQ(decoder.flush(), "\uFFFD");
    EXPECT_EQ(decoder.flush(), "");
    StreamDecoder all(tokenizer, true, true);
    EXPECT_EQ(all.push(263), "<s>");
}

TEST(StreamDecoder, DropsTheTokenizersOwnBlankAtTheStartOnly) {
    const Tokenizer tokenizer(test::tinyScored());
    StreamDecoder start(tokenizer);
    EXPECT_EQ(start.push(259), "a");
    EXPECT_EQ(start.push(259), " a");
    StreamDecoder middle(tokenizer, false);
    EXPECT_EQ(middle.push(259), " a");
}

TEST(PreTokenizer, KeepsWhatLiesBetweenMatches) {
    const PreTokenizer splitter({"b+", "\\d"});
    EXPECT_EQ(splitter.split("abb1c2"), (std::vector<std::string_view>{"a", "bb", "1", "c", "2"}));
    EXPECT_TRUE(splitter.split("").empty());
    const PreTokenizer empty({"x*"});
    EXPECT_EQ(empty.split("aéxxb"), (std::vector<std::string_view>{"aé", "xx", "b"}));
}

TEST(PreTokenizer, WhiteSpaceIsUnicodes) {
    const PreTokenizer splitter({"\\s+"});
    EXPECT_EQ(splitter.split("a\u0085\u3000b\u180Ec"),
              (std::vector<std::string_view>{"a", "\u0085\u3000", "b\u180Ec"}));
    const PreTokenizer inClass({"[^\\s\\d]+"});
    EXPECT_EQ(inClass.split("ab\u30001"), (std::vector<std::string_view>{"ab", "\u30001"}));
}

TEST(Nfc, Composes) {
    EXPECT_EQ(toNfc("plain"), "plain");
    EXPECT_EQ(toNfc("e\u0301"), "é");
    EXPECT_EQ(toNfc("\u1100\u1161\u11A8"), "각");
    EXPECT_EQ(toNfc("a\u0301\u0323"), "ạ\u0301");  // marks are put in order
    EXPECT_EQ(toNfc("ﬁ"), "ﬁ");                    // compatibility characters stay
    EXPECT_EQ(toNfc(std::string("a\0e\u0301", 5)), std::string("a\0é", 4));
}

TEST(Nfc, TakesNLogNOnManyMarks) {
    std::string text = "a";
    for (int i = 0; i < 250'000; i++) text += i % 2 ? "\u0301" : "\u0323";
    EXPECT_EQ(toNfc(text).size(), 3 + 249'999 * 2u);  // the first mark below composes with the letter
}

TEST(Utf8, StepsOverFaultySequencesAsPythonDoes) {
    EXPECT_EQ(replaceInvalidUtf8("\x80"), "\uFFFD");
    EXPECT_EQ(replaceInvalidUtf8("\xC0\xAF"), "\uFFFD\uFFFD");
    EXPECT_EQ(replaceInvalidUtf8("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");
    EXPECT_EQ(replaceInvalidUtf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
    EXPECT_EQ(replaceInvalidUtf8("\xF0\x9F\x98z"), "\uFFFDz");
    EXPECT_EQ(replaceInvalidUtf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
    EXPECT_EQ(replaceInvalidUtf8("é😀"), "é😀");
    EXPECT_TRUE(isValidUtf8("é😀"));
    EXPECT_FALSE(isValidUtf8("\xC3"));
    EXPECT_EQ(stripUnicode(" \u3000a b\u00A0\n\u2028"), "a b");
    EXPECT_EQ(stripUnicode("\u3000 "), "");
    EXPECT_EQ(stripUnicodeLeft(" \ta "), "a ");
}

}  // namespace
}  // namespace dllama
