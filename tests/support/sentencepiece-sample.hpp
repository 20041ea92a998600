#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

/// A sentencepiece model of three pieces, made by hand: "<unk>", "a" and "b".
namespace dllama::test {

/// A protobuf field of bytes.
inline std::string protoField(int number, const std::string& bytes) {
    std::string out(1, static_cast<char>(number << 3 | 2));
    for (size_t n = bytes.size();; n >>= 7) {
        out += static_cast<char>((n & 0x7f) | (n >= 0x80 ? 0x80 : 0));
        if (n < 0x80) return out + bytes;
    }
}
inline std::string protoNumber(int field, int value) {
    return {static_cast<char>(field << 3), static_cast<char>(value)};
}
inline std::string protoPiece(const std::string& text, float score, int type = 1) {
    std::string bytes(4, '\0');
    std::memcpy(bytes.data(), &score, 4);
    return protoField(1, protoField(1, text) + static_cast<char>(2 << 3 | 5) + bytes + protoNumber(3, type));
}

/// A normalisation table that replaces "a" by "b".
struct SampleTrie {
    std::vector<uint32_t> units = std::vector<uint32_t>(1024);
    std::string texts = std::string("b\0c\0", 4);

    static uint32_t unit(uint32_t label, bool hasValue, uint32_t offset) {
        return label | (hasValue ? 0x100u : 0u) | offset << 10;
    }
    SampleTrie() {
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

inline std::string sampleSentencePieceModel(const std::string& charsmap, float score = -1.0f) {
    return protoPiece("<unk>", 0.0f, 2) + protoPiece("a", -2.0f) + protoPiece("b", score) +
           protoField(2, protoNumber(3, 2)) +
           protoField(3, protoField(1, "own") + protoField(2, charsmap) + protoNumber(3, 0));
}

}  // namespace dllama::test
