#pragma once

#include <sentencepiece_processor.h>

#include <string>
#include <string_view>
#include <vector>

namespace dllama {

/// A sentencepiece model, run by its library, with the white-space rules that ChatGLM-6B adds. Several threads may
/// encode at once.
class SentencePieceModel {
  public:
    /// textRules is "" or "chatglm-6b". Throws FormatError if the model is damaged.
    SentencePieceModel(const std::string& model, std::string_view textRules);

    /// Appends the ids of `text`, which must be valid UTF-8.
    void encode(std::string_view text, std::vector<int>& ids) const;

    int nPieces() const { return processor_.GetPieceSize(); }
    /// True for pieces that no text makes and that print nothing: `<s>`, `<unk>`.
    bool isControl(int id) const { return processor_.IsControl(id) || processor_.IsUnknown(id); }
    /// True if the model puts a blank before each text.
    bool addsBlank() const { return addsBlank_; }

    /// What a piece that stands for white space under ChatGLM-6B's rules prints; others print themselves.
    static std::string printed(const std::string& piece);

  private:
    void encodePart(std::string_view text, std::vector<int>& ids) const;

    sentencepiece::SentencePieceProcessor processor_;
    bool chatglmRules_;
    bool addsBlank_ = false;
    bool cutsAtBlanks_ = false;  // a long text may be cut at blanks between words
};

}  // namespace dllama
