#pragma once

#include "base/byte-reader.hpp"
#include "format/tokenizer-file.hpp"

/// What reading and writing a `.t` file share (docs/file-format.md).
namespace dllama::tokenizer_file {

inline constexpr int32_t kMagic = 0x567124;
inline constexpr int32_t kTrailerMagic = 0x4a544c44;
enum Key : int32_t {
    kVersion = 0,
    kVocabSize = 1,
    kMaxTokenLength = 2,
    kBosId = 3,
    kEosId = 4,
    kPadId = 5,
    kChatEosId = 6,
    kChatTemplate = 7,
    kChatStop = 8,
    kEosCount = 9,
    kAddBos = 10,
};

/// A length that the file itself can hold. Throws FormatError.
int32_t readLength(int32_t value, const char* what, const ByteReader& reader);

/// The rules that a file must keep however it came to be. Throws FormatError.
void checkFile(const TokenizerFile& file, const std::string& name);

/// The JSON document behind the vocabulary, with the merges and the model that follow it.
void readDocument(ByteReader& reader, TokenizerFile& file);
/// Its text. Throws FormatError if a text is not UTF-8.
std::string describe(const TokenizerFile& file, const std::string& path);

/// Fills in what distributed-llama's files leave unsaid: the rules at readTokenizerFile().
void guessDescription(TokenizerFile& file);

}  // namespace dllama::tokenizer_file
