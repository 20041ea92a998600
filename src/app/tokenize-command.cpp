#include <nlohmann/json.hpp>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"

namespace dllama {

int runTokenize(const TokenizeOptions& options) {
    if (!options.text.empty() && !options.textFile.empty())
        throw ConfigError("tokenize needs one of --text and --text-file");
    if (options.text.empty() && options.textFile.empty()) throw ConfigError("tokenize needs --text or --text-file");
    const Tokenizer tokenizer = loadTokenizer(findTokenizer(options.tokenizer));
    const std::string text = options.textFile.empty() ? options.text : readTextFile(options.textFile);
    const std::vector<int> ids =
        tokenizer.encode(text, options.parseSpecial ? SpecialTokens::Parse : SpecialTokens::Never);
    if (options.json) {
        fmt::print("{}\n", nlohmann::json({{"ids", ids}}).dump());
        return 0;
    }
    for (int id : ids) {
        // A token may be part of a character: shown as its bytes then.
        const nlohmann::json piece = std::string(tokenizer.piece(id));
        fmt::print("{:8} {}\n", id, piece.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    }
    return 0;
}

}  // namespace dllama
