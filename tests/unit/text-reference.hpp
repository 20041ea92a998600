#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "format/tokenizer-file.hpp"

/// Builds tokenizers straight from the publishers' files, without the converter, so that each checks the other.
namespace dllama::test {

/// The folder of reference data: DLLAMA_SHARED, else ../shared beside the checkout; nothing if it is not there.
std::optional<std::filesystem::path> sharedFolder();

/// The tokenizer of a folder of `tokenizers`, which is tests/data/tokenizers (reduced to what their encodings need) or
/// that of the whole published ones: "glm-4-9b-chat", "glm-4.5", "llama3", "qwen2", "llama2", "chatglm3-6b",
/// "chatglm-6b".
TokenizerFile referenceTokenizer(const std::filesystem::path& tokenizers, const std::string& name);

/// The pairs (text, ids) of an encodings.json.
std::vector<std::pair<std::string, std::vector<int>>> readEncodings(const std::filesystem::path& path);

std::string readText(const std::filesystem::path& path);

}  // namespace dllama::test
