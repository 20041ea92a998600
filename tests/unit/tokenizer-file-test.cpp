#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/errors.hpp"
#include "tokenizer-samples.hpp"

namespace dllama {
namespace {

std::string tempPath() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    return testing::TempDir() + "dllama-" + info->name() + ".t";
}

/// The bytes that writeTokenizerFile writes.
std::string bytesOf(const TokenizerFile& file) {
    const std::string path = tempPath();
    writeTokenizerFile(path, file);
    std::ifstream in(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    std::filesystem::remove(path);
    return bytes;
}

TokenizerFile parse(const std::string& bytes) {
    return parseTokenizerFile(std::as_bytes(std::span(bytes.data(), bytes.size())), "sample.t");
}

std::string parseError(const std::string& bytes) {
    try {
        parse(bytes);
    } catch (const FormatError& error) {
        return error.what();
    }
    return "no error";
}

TokenizerFile fullSample() {
    TokenizerFile file = test::tinyBpe();
    file.patterns = {"\\d+", "\\s?\\w+|\\s+|[^\\s\\w]+"};
    file.normalizer = "nfc";
    file.merges = {{'h', 'e'}, {'l', 'l'}, {256, 257}, {258, 'o'}};
    file.prefixIds = {263};
    file.suffixIds = {265, 263};
    file.chatFormatReason = "what it writes differs";
    file.chatFormatCompared = true;
    return file;
}

void append(std::string& bytes, int32_t value) {
    bytes.append(reinterpret_cast<const char*>(&value), 4);
}

/// A file as distributed-llama writes it: header pairs, template, end tokens, vocabulary.
std::string legacyBytes(const std::vector<std::pair<int32_t, int32_t>>& pairs, const std::string& chatTemplate,
                        const std::vector<int32_t>& eosIds, const TokenizerFile& vocabulary) {
    std::string bytes;
    append(bytes, 0x567124);
    append(bytes, static_cast<int32_t>(8 + 8 * pairs.size()));
    for (const auto& [key, value] : pairs) {
        append(bytes, key);
        append(bytes, value);
    }
    bytes += chatTemplate;
    for (int32_t id : eosIds) append(bytes, id);
    for (size_t id = 0; id < vocabulary.vocab.size(); id++) {
        bytes.append(reinterpret_cast<const char*>(&vocabulary.scores[id]), 4);
        append(bytes, static_cast<int32_t>(vocabulary.vocab[id].size()));
        bytes += vocabulary.vocab[id];
    }
    return bytes;
}

TEST(TokenizerFile, ReadsWhatItWrites) {
    EXPECT_EQ(parse(bytesOf(fullSample())), fullSample());
    EXPECT_EQ(parse(bytesOf(test::tinyBpe())), test::tinyBpe());
    EXPECT_EQ(parse(bytesOf(test::tinyScored())), test::tinyScored());
    TokenizerFile model = test::tinyScored();
    model.kind = TokenizerFile::Kind::SentencePiece;
    model.model = std::string("\x01\x00\xFF", 3);
    model.textRules = "chatglm-6b";
    EXPECT_EQ(parse(bytesOf(model)), model);
}

TEST(TokenizerFile, UnderstandsDistributedLlamasByteLevelFiles) {
    const TokenizerFile tiny = test::tinyBpe();
    const int32_t size = static_cast<int32_t>(tiny.vocab.size());
    // The newest form, and one of 2024 with keys 4 and 6 and neither 9 nor 10.
    const TokenizerFile now =
        parse(legacyBytes({{3, 263}, {0, 1}, {1, size}, {2, 7}, {9, 1}, {10, 0}}, "", {265}, tiny));
    EXPECT_EQ(now.kind, TokenizerFile::Kind::Bpe);
    EXPECT_EQ(now.vocab, tiny.vocab);
    EXPECT_EQ(now.special, tiny.special);
    EXPECT_EQ(now.eosIds, std::vector<int>{265});
    EXPECT_FALSE(now.addBos);
    ASSERT_EQ(now.patterns.size(), 1u);
    EXPECT_NE(now.patterns[0].find("{1,3}"), std::string::npos);
    const std::string llama3 = "<|start_header_id|>";
    const TokenizerFile old = parse(
        legacyBytes({{0, 1}, {1, size}, {2, 7}, {3, 263}, {4, 265}, {6, 264}, {7, static_cast<int32_t>(llama3.size())}},
                    llama3, {}, tiny));
    EXPECT_EQ(old.eosIds, (std::vector<int>{265, 264}));
    EXPECT_TRUE(old.addBos);
    EXPECT_EQ(old.chatTemplate, llama3);
    EXPECT_EQ(old.chatFormat, "");
    const std::string chatml = "<|im_start|> enable_thinking";
    const TokenizerFile qwen = parse(legacyBytes(
        {{3, -1}, {0, 1}, {1, size}, {2, 7}, {7, static_cast<int32_t>(chatml.size())}, {9, 1}}, chatml, {265}, tiny));
    EXPECT_EQ(qwen.normalizer, "nfc");
    EXPECT_FALSE(qwen.addBos);
    EXPECT_EQ(qwen.patterns[0].find("{1,3}"), std::string::npos);
}

TEST(TokenizerFile, UnderstandsDistributedLlamasSentencepieceFiles) {
    const TokenizerFile tiny = test::tinyScored();
    const TokenizerFile file = parse(
        legacyBytes({{3, 1}, {0, 1}, {1, static_cast<int32_t>(tiny.vocab.size())}, {2, 5}, {7, 6}, {9, 1}, {10, 1}},
                    "[INST]", {2}, tiny));
    EXPECT_EQ(file.kind, TokenizerFile::Kind::ScoredPieces);
    EXPECT_EQ(file.special, tiny.special);
    EXPECT_EQ(file.chatFormat, "");
    EXPECT_TRUE(file.addBos);
}

TEST(TokenizerFile, NamesFileAndReason) {
    const std::string good = bytesOf(fullSample());
    EXPECT_EQ(parseError(""), "sample.t: the magic number needs 4 bytes at offset 0, the file has 0 bytes");
    EXPECT_EQ(parseError(std::string(8, 'x')),
              "sample.t: not a tokenizer file: the magic number is 0x78787878, not 0x567124");
    EXPECT_NE(parseError(good + "x").find("bytes follow"), std::string::npos);
    EXPECT_NE(parseError(good.substr(0, good.size() - 1)).find("bytes follow"), std::string::npos);
    const TokenizerFile tiny = test::tinyBpe();
    const auto error = [&](std::vector<std::pair<int32_t, int32_t>> pairs) {
        return parseError(legacyBytes(pairs, "", {}, tiny));
    };
    EXPECT_EQ(error({{1, 5}}), "sample.t: tokenizer version -1, only 1 is known");
    EXPECT_EQ(error({{0, 1}}), "sample.t: the vocabulary is empty");
    EXPECT_EQ(error({{0, 1}, {77, 1}}), "sample.t: unknown header key 77");
    EXPECT_NE(error({{0, 1}, {1, 2147483647}}).find("the vocabulary size is 2147483647"), std::string::npos);
    EXPECT_NE(error({{0, 1}, {1, -1}}).find("the vocabulary size is -1"), std::string::npos);
    EXPECT_NE(error({{0, 1}, {1, 266}, {3, 266}}).find("the BOS id 266 is outside the vocabulary of 266"),
              std::string::npos);
    EXPECT_NE(error({{0, 1}, {1, 266}, {4, -5}}).find("end token -5"), std::string::npos);
    EXPECT_THROW(readTokenizerFile("/nonexistent.t"), FormatError);
}

TEST(TokenizerFile, RefusesWrongFields) {
    const auto withField = [](const std::string& from, const std::string& to) {
        std::string bytes = bytesOf(fullSample());
        const size_t at = bytes.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        DLLAMA_CHECK(from.size() == to.size());
        return parseError(bytes.replace(at, from.size(), to));
    };
    EXPECT_EQ(withField("\"normalizer\"", "\"normalizes\""), "sample.t: unknown field \"normalizes\"");
    EXPECT_EQ(withField("\"kind\":\"bpe\"", "\"kind\":\"bpx\""), "sample.t: unknown kind \"bpx\"");
    EXPECT_EQ(withField("\"nfc\"", "\"nfx\""), "sample.t: unknown normalizer \"nfx\"");
    EXPECT_EQ(withField("\"ignore_merges\":false", "\"ignore_merges\":12345"),
              "sample.t: the field \"ignore_merges\" is not true or false");
    EXPECT_EQ(withField("[263,\"<s>\",true]", "[963,\"<s>\",true]"),
              "sample.t: special token 963 is outside the vocabulary of 266");
    EXPECT_EQ(withField("\"format\":1", "\"format\":2"), "sample.t: description format 2, only 1 is known");
    EXPECT_EQ(withField("{\"format\"", "[\"format\""), "sample.t: the JSON document is damaged");
}

TEST(TokenizerFile, RefusesToWriteWhatItCouldNotRead) {
    TokenizerFile file = test::tinyBpe();
    file.vocab[3].clear();
    EXPECT_THROW(writeTokenizerFile(tempPath(), file), FormatError);
    file = test::tinyBpe();
    file.eosIds = {266};
    EXPECT_THROW(writeTokenizerFile(tempPath(), file), FormatError);
    file = test::tinyBpe();
    file.special[0].text = "\xFF";
    EXPECT_THROW(writeTokenizerFile(tempPath(), file), FormatError);
    EXPECT_THROW(writeTokenizerFile("/nonexistent/x.t", test::tinyBpe()), FormatError);
}

/// Either the file loads or it is refused by a FormatError in one line; anything else fails the test.
void expectLoadsOrRefuses(const std::string& bytes) {
    try {
        parse(bytes);
    } catch (const FormatError& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with("sample.t: ")) << error.what();
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
}

TEST(TokenizerFile, SurvivesEveryTruncation) {
    const std::string bytes = bytesOf(fullSample());
    size_t accepted = 0;
    for (size_t n = 0; n < bytes.size(); n++) {
        expectLoadsOrRefuses(bytes.substr(0, n));
        accepted += parseError(bytes.substr(0, n)) == "no error";
    }
    EXPECT_EQ(accepted, 1u);  // cut right behind the vocabulary it is a distributed-llama file
}

TEST(TokenizerFile, SurvivesDamage) {
    constexpr unsigned kSeed = 20240611;
    std::mt19937 random(kSeed);
    for (const TokenizerFile& sample : {fullSample(), test::tinyBpe(), test::tinyScored()}) {
        const std::string good = bytesOf(sample);
        for (int round = 0; round < 5000; round++) {
            std::string bytes = good;
            const int nChanges = 1 + static_cast<int>(random() % 4);
            for (int i = 0; i < nChanges; i++) {
                const size_t at = random() % bytes.size();
                switch (random() % 4) {
                    case 0:
                        bytes[at] = static_cast<char>(bytes[at] ^ 1 << random() % 8);
                        break;
                    case 1:
                        bytes[at] = static_cast<char>(random());
                        break;
                    case 2:
                        bytes.erase(at, random() % 9);
                        break;
                    default:
                        bytes.insert(at, random() % 9, static_cast<char>(random()));
                        break;
                }
            }
            expectLoadsOrRefuses(bytes);
        }
        // Every header field with values at the edges of what 32 bits hold.
        const int32_t edges[] = {-2147483647 - 1, -1, 0, 1, 255, 65536, 2147483647};
        for (size_t at = 0; at + 4 <= 64; at += 4) {
            for (int32_t edge : edges) {
                std::string bytes = good;
                std::memcpy(bytes.data() + at, &edge, 4);
                expectLoadsOrRefuses(bytes);
            }
        }
    }
}

}  // namespace
}  // namespace dllama
