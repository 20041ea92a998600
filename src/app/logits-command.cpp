#include <nlohmann/json.hpp>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"

namespace dllama {

int runLogits(const LogitsOptions& options) {
    if (options.ids.empty() == options.idsFile.empty()) throw ConfigError("logits needs one of --ids and --ids-file");
    if (options.out.empty() && options.greedy == 0) throw ConfigError("logits needs --out FILE, --greedy N or both");
    if (options.greedy < 0) throw ConfigError("--greedy is {}, must be 0 or more", options.greedy);
    const std::vector<int> tokens = options.idsFile.empty() ? options.ids : readIdsFile(options.idsFile);

    SessionNeeds needs;
    // Rows of a batch; a model that computes its prompt whole gives them all at once.
    needs.maxOutputs = std::max(128, static_cast<int>(tokens.size()));
    needs.positions = static_cast<int>(tokens.size()) + options.greedy;
    needs.tokenizer = false;
    needs.status = stderr;
    Session session(options.model, needs);
    Engine& engine = session.engine();

    nlohmann::json result = {{"prompt", tokens}, {"vocab", session.arch().config.vocabSize}};
    if (!options.out.empty()) {
        OutputFile out(options.out);
        int rows = 0;
        engine.score(tokens, 0, [&](int, std::span<const float> logits) {
            out.write(std::as_bytes(logits));
            rows++;
        });
        out.finish();
        result["rows"] = rows;
        result["out"] = options.out;
    }
    if (options.greedy > 0) result["greedy"] = answer(engine, {tokens, {.temperature = 0.0f}, {options.greedy, {}}});
    fmt::print("{}\n", result.dump());
    return 0;
}

}  // namespace dllama
