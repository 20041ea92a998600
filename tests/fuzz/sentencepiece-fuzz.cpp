// libFuzzer target: any bytes as a sentencepiece model are refused, or serve to encode texts. The first byte says what
// the others are: a model, or (odd) changes of the normalisation table of one that is sound.

#include <cstdint>
#include <cstring>
#include <string>

#include "base/errors.hpp"
#include "sentencepiece-sample.hpp"
#include "text/sentencepiece-model.hpp"

namespace {

using namespace dllama;

/// Each change is six bytes: which unit, and its new value. Two of three go where the table is in use.
std::string changedModel(const uint8_t* data, size_t size) {
    test::SampleTrie trie;
    for (; size >= 6; data += 6, size -= 6) {
        uint16_t index = 0;
        uint32_t value = 0;
        std::memcpy(&index, data, 2);
        std::memcpy(&value, data + 2, 4);
        constexpr size_t kUsed[] = {0, 256 ^ 'a', 512, 512 ^ 'a', 256 ^ 'b', 768 ^ 'a'};
        // A value as a fuzzer finds it seldom has a sensible offset: it is brought close to the table.
        if (index & 0x8000) value &= 0x800003ff | 0x7ff << 10;
        trie.units[index & 0x4000 ? index % trie.units.size() : kUsed[index % std::size(kUsed)]] = value;
    }
    if (size > 0) trie.texts.assign(reinterpret_cast<const char*>(data), size);
    return test::sampleSentencePieceModel(trie.charsmap());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const std::string model = data[0] % 2 == 1 ? changedModel(data + 1, size - 1)
                                               : std::string(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        const SentencePieceModel pieces(model, "");
        std::vector<int> ids;
        for (const char* text :
             {"aab ab", "\xe6\xa8\xa1 caf\xc3\xa9\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"})
            pieces.encode(text, ids);
    } catch (const Error&) {
        return 0;
    }
    return 0;
}
