#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "text/tokenizer.hpp"

/// The engine's tokenizer for the converter's tests: argv[1] is a .t file; a JSON list of texts from stdin becomes one
/// of {ids, prompt, back} on stdout: ids as plain text, ids as a prompt (special tokens parsed, prefix and suffix
/// added), and the text that the plain ids decode to. With --without-rules the file's text rules are left out.
int main(int argc, char** argv) {
    using namespace dllama;
    if (argc < 2) return 1;
    TokenizerFile file = readTokenizerFile(argv[1]);
    if (argc > 2 && argv[2] == std::string_view("--without-rules")) file.textRules.clear();
    const Tokenizer tokenizer(std::move(file));
    nlohmann::json results = nlohmann::json::array();
    for (const std::string text : nlohmann::json::parse(std::cin)) {
        const std::vector<int> ids = tokenizer.encode(text, SpecialTokens::Never);
        results.push_back({{"ids", ids},
                           {"prompt", tokenizer.encode(text, SpecialTokens::Parse, true)},
                           {"back", tokenizer.decode(ids)}});
    }
    fmt::print("{}\n", results.dump());
    return 0;
}
