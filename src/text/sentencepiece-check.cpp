#include "text/sentencepiece-check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama {

namespace {

/// Far more than any published table has (NFKC with case folding: 0.3 MB), or any score.
constexpr size_t kMaxTrieBytes = 1 << 20;
constexpr float kMaxScore = 1e12f;  // Llama 2 has -1e9
/// The library collects so many matches at one place of a text and reads on behind them if there are more.
constexpr int kMaxMatches = 32;
/// The longest text that a character is replaced by (U+FDFA: 33 bytes): one that is long would make any text huge.
constexpr size_t kMaxReplacement = 256;

[[noreturn]] void damaged(const char* reason) {
    throw FormatError("the sentencepiece model is damaged: {}", reason);
}

/// One field after the other of a protobuf message.
class Message {
  public:
    explicit Message(std::string_view bytes) : bytes_(bytes) {}

    struct Field {
        uint64_t number = 0;
        std::string_view bytes;  // of texts, messages and fixed numbers
    };
    bool next(Field& field) {
        if (bytes_.empty()) return false;
        const uint64_t key = varint();
        field = {key >> 3, {}};
        switch (key & 7) {
            case 0:
                varint();
                break;
            case 1:
                field.bytes = take(8);
                break;
            case 2:
                field.bytes = take(varint());
                break;
            case 5:
                field.bytes = take(4);
                break;
            default:
                damaged("a field of an unknown kind");
        }
        return true;
    }

  private:
    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const auto byte = static_cast<unsigned char>(take(1)[0]);
            value |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
        damaged("a number of more than 64 bits");
    }
    std::string_view take(uint64_t n) {
        if (n > bytes_.size()) damaged("it ends within a field");
        const std::string_view taken = bytes_.substr(0, n);
        bytes_.remove_prefix(n);
        return taken;
    }

    std::string_view bytes_;
};

/// The double array that finds, for each begin of a text, what it is replaced by (darts-clone). A unit of 32 bits: bits
/// 0..7 the label (none if bit 31 is set), bit 8 whether a value is there, bit 9 whether the offset is to be shifted by
/// 8, bits 10.. the offset. The search stands at a position p and reads the unit at p ^ label for any label of the
/// text; where the label is right, p becomes that index ^ its offset. The value of p is the unit at p itself.
class Charsmap {
  public:
    explicit Charsmap(std::string_view blob) {
        uint32_t trieBytes = 0;
        if (blob.size() < sizeof trieBytes) damaged("a charsmap without a length");
        std::memcpy(&trieBytes, blob.data(), sizeof trieBytes);
        blob.remove_prefix(sizeof trieBytes);
        if (trieBytes > kMaxTrieBytes || trieBytes % 4 != 0 || trieBytes == 0 || trieBytes >= blob.size())
            damaged("the length of the charsmap is impossible");
        units_.resize(trieBytes / 4);
        std::memcpy(units_.data(), blob.data(), trieBytes);
        texts_ = blob.substr(trieBytes);
        if (texts_.back() != '\0') damaged("the charsmap's texts do not end");
    }

    void check() {
        // Every unit with a label is what one position leads to by it.
        constexpr uint32_t kNone = UINT32_MAX;
        std::vector<uint32_t> first(units_.size(), kNone), sibling(units_.size(), kNone);
        for (uint32_t i = 0; i < units_.size(); i++) {
            if (units_[i] >> 31 != 0) continue;
            const uint32_t parent = i ^ (units_[i] & 0xff);
            if (parent >= units_.size()) continue;  // nothing leads there: positions are checked below
            sibling[i] = first[parent];
            first[parent] = i;
        }
        // The most matches on any way to a position. Ways may join, and even go round, as long as they match no more.
        std::vector<int8_t> matches(units_.size(), -1);
        std::vector<uint32_t> open;
        const auto reach = [&](uint32_t position, int n) {
            // Whatever the text's next byte is, it is looked up.
            if ((position | 0xff) >= units_.size()) damaged("the charsmap leads out of its table");
            if (n > kMaxMatches) damaged("the charsmap matches too many texts at once");
            if (n <= matches[position]) return;
            matches[position] = static_cast<int8_t>(n);
            open.push_back(position);
        };
        reach(offset(units_[0]), 0);
        while (!open.empty()) {
            const uint32_t position = open.back();
            open.pop_back();
            for (uint32_t i = first[position]; i != kNone; i = sibling[i]) {
                const bool hasValue = (units_[i] >> 8 & 1) != 0;
                reach(i ^ offset(units_[i]), matches[position] + hasValue);
                if (hasValue) checkText(units_[i ^ offset(units_[i])] & 0x7fffffff);
            }
        }
    }

  private:
    static uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }

    void checkText(uint32_t at) const {
        if (at >= texts_.size()) damaged("the charsmap names a text behind its end");
        const std::string_view text = texts_.substr(at, kMaxReplacement + 1);
        const size_t length = text.find('\0');
        if (length == std::string_view::npos) damaged("the charsmap has a text without an end");
        if (!isValidUtf8(text.substr(0, length))) damaged("the charsmap has a text that is not UTF-8");
    }

    std::vector<uint32_t> units_;
    std::string_view texts_;
};

void checkPiece(std::string_view bytes) {
    Message message(bytes);
    for (Message::Field field; message.next(field);) {
        if (field.number == 1 && !isValidUtf8(field.bytes)) damaged("a piece that is not UTF-8");
        if (field.number == 2) {
            float score = 0.0f;
            if (field.bytes.size() != sizeof score) damaged("a score that is no number");
            std::memcpy(&score, field.bytes.data(), sizeof score);
            if (!(std::fabs(score) <= kMaxScore)) damaged("a score that is no number, or too large");
        }
    }
}

void checkNormalizer(std::string_view bytes) {
    Message message(bytes);
    for (Message::Field field; message.next(field);)
        if (field.number == 2 && !field.bytes.empty()) Charsmap(field.bytes).check();
}

}  // namespace

void checkSentencePieceModel(std::string_view model) {
    Message message(model);
    for (Message::Field field; message.next(field);) {
        if (field.number == 1) checkPiece(field.bytes);
        if (field.number == 3 || field.number == 5) checkNormalizer(field.bytes);
    }
}

}  // namespace dllama
