#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "format/tokenizer-parts.hpp"

namespace dllama {
namespace {

class Writer {
  public:
    template <typename T>
    void put(T value) {
        bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
    }
    std::string bytes;
};

}  // namespace

void writeTokenizerFile(const std::string& path, const TokenizerFile& file) {
    using namespace tokenizer_file;
    checkFile(file, path);
    const auto maxLength = [](const std::vector<std::string>& texts) {
        size_t longest = 0;
        for (const std::string& text : texts) longest = std::max(longest, text.size());
        return static_cast<int32_t>(longest);
    };
    std::vector<std::pair<int32_t, int32_t>> pairs = {{kBosId, file.bosId},
                                                      {kVersion, 1},
                                                      {kVocabSize, static_cast<int32_t>(file.vocab.size())},
                                                      {kMaxTokenLength, maxLength(file.vocab)}};
    if (!file.chatTemplate.empty()) {
        pairs.emplace_back(kChatTemplate, static_cast<int32_t>(file.chatTemplate.size()));
    }
    pairs.emplace_back(kEosCount, static_cast<int32_t>(file.eosIds.size()));
    pairs.emplace_back(kAddBos, file.addBos ? 1 : 0);

    Writer writer;
    writer.put(kMagic);
    writer.put(static_cast<int32_t>(8 + 8 * pairs.size()));
    for (const auto& [key, value] : pairs) {
        writer.put(key);
        writer.put(value);
    }
    writer.bytes += file.chatTemplate;
    for (int id : file.eosIds) writer.put(static_cast<int32_t>(id));
    for (size_t id = 0; id < file.vocab.size(); id++) {
        writer.put(file.scores[id]);
        writer.put(static_cast<int32_t>(file.vocab[id].size()));
        writer.bytes += file.vocab[id];
    }
    if (file.kind != TokenizerFile::Kind::ScoredPieces) {
        const std::string document = describe(file, path);
        writer.put(kTrailerMagic);
        writer.put(static_cast<int32_t>(document.size()));
        writer.bytes += document;
        for (const auto& [left, right] : file.merges) {
            writer.put(left);
            writer.put(right);
        }
        writer.bytes += file.model;
    }
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(writer.bytes.data(), static_cast<std::streamsize>(writer.bytes.size()));
    out.close();
    if (!out) throw FormatError("{}: cannot be written: {}", path, std::strerror(errno));
}

}  // namespace dllama
