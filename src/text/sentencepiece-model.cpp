#include "text/sentencepiece-model.hpp"

#include <algorithm>
#include <charconv>

#include "base/errors.hpp"
#include "text/sentencepiece-check.hpp"

namespace dllama {
namespace {

constexpr std::string_view kBlank = "\xE2\x96\x81";  // U+2581, which stands for a blank in pieces

// ChatGLM-6B, tokenization_chatglm.py: line feeds, tabs and runs of 2 to 80 blanks have pieces of their own.
constexpr std::string_view kLineFeedPiece = "<n>";
constexpr std::string_view kTabPiece = "<|tab|>";
constexpr std::string_view kBlanksPrefix = "<|blank_";
constexpr size_t kMaxBlanks = 80;

std::string applyChatglmRules(std::string_view text) {
    std::string result;
    result.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
        if (text[i] == '\n') {
            result += kLineFeedPiece;
            i++;
        } else if (text[i] == '\t') {
            result += kTabPiece;
            i++;
        } else if (text[i] == ' ') {
            const std::string_view window = text.substr(i, kMaxBlanks);
            const size_t n = std::min(window.find_first_not_of(' '), window.size());
            if (n > 1) {
                result += fmt::format("{}{}|>", kBlanksPrefix, n);
            } else {
                result += ' ';
            }
            i += n;
        } else {
            result += text[i++];
        }
    }
    return result;
}

// Long texts are cut into parts of about this size where that changes nothing: the library's byte-pair encoding holds
// the whole text in its tables and is slow when they outgrow the caches.
constexpr size_t kPartBytes = 4096;

bool isGraphic(char c) {
    return c > ' ' && c <= '~';
}

/// The first blank at or after `from` that stands alone between two printable ASCII characters; npos if none does.
size_t findCut(std::string_view text, size_t from) {
    for (size_t i = text.find(' ', from); i != std::string_view::npos && i + 1 < text.size();
         i = text.find(' ', i + 1)) {
        if (isGraphic(text[i - 1]) && isGraphic(text[i + 1])) return i;
    }
    return std::string_view::npos;
}

}  // namespace

SentencePieceModel::SentencePieceModel(const std::string& model, std::string_view textRules)
    : chatglmRules_(textRules == "chatglm-6b") {
    checkSentencePieceModel(model);
    const auto status = processor_.LoadFromSerializedProto(model);
    if (!status.ok()) throw FormatError("the sentencepiece model is damaged: {}", status.ToString());
    const std::vector<std::string> probe = processor_.EncodeAsPieces("a");
    addsBlank_ = !probe.empty() && probe[0].starts_with(kBlank);
    // Cutting is exact if every text gets a blank in front (it takes the place of the one at the cut), if blanks are
    // kept as they are, and if no piece reaches across a word's end.
    const bool keepsBlanks = !processor_.EncodeAsIds(" ").empty();
    bool crosses = false;
    for (int id = 0; id < nPieces() && !crosses; id++) {
        const std::string& piece = processor_.IdToPiece(id);
        const size_t last = piece.rfind(kBlank);
        for (size_t i = 0; last != std::string::npos && i < last && !crosses; i += kBlank.size()) {
            crosses = piece.compare(i, kBlank.size(), kBlank) != 0;
        }
    }
    cutsAtBlanks_ = addsBlank_ && keepsBlanks && !crosses && !chatglmRules_;
}

void SentencePieceModel::encode(std::string_view text, std::vector<int>& ids) const {
    if (chatglmRules_) return encodePart(applyChatglmRules(text), ids);
    while (cutsAtBlanks_ && text.size() > kPartBytes) {
        const size_t cut = findCut(text, kPartBytes);
        if (cut == std::string_view::npos) break;
        encodePart(text.substr(0, cut), ids);
        text.remove_prefix(cut + 1);
    }
    encodePart(text, ids);
}

void SentencePieceModel::encodePart(std::string_view text, std::vector<int>& ids) const {
    const std::vector<int> found = processor_.EncodeAsIds(text);
    ids.insert(ids.end(), found.begin(), found.end());
}

std::string SentencePieceModel::printed(const std::string& piece) {
    if (piece == kLineFeedPiece) return "\n";
    if (piece == kTabPiece) return "\t";
    if (!piece.starts_with(kBlanksPrefix) || !piece.ends_with("|>")) return piece;
    size_t n = 0;
    const char* begin = piece.data() + kBlanksPrefix.size();
    const char* end = piece.data() + piece.size() - 2;
    const auto [stop, error] = std::from_chars(begin, end, n);
    return error == std::errc() && stop == end && n >= 2 && n <= kMaxBlanks ? std::string(n, ' ') : piece;
}

}  // namespace dllama
