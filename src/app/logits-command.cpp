#include <nlohmann/json.hpp>
#include <optional>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "model/layer-dump.hpp"

namespace dllama {

int runLogits(const LogitsOptions& options) {
    if (options.ids.empty() == options.idsFile.empty()) throw ConfigError("logits needs one of --ids and --ids-file");
    if (options.out.empty() && options.greedy == 0 && options.dumpLayers.empty())
        throw ConfigError("logits needs at least one of --out FILE, --greedy N and --dump-layers FOLDER");
    if (options.greedy < 0) throw ConfigError("--greedy is {}, must be 0 or more", options.greedy);
    const std::vector<int> tokens = options.idsFile.empty() ? options.ids : readIdsFile(options.idsFile);

    SessionNeeds needs;
    // Rows of a batch; a model that computes its prompt whole gives them all at once.
    needs.maxOutputs = std::max(128, static_cast<int>(tokens.size()));
    needs.positions = static_cast<int>(tokens.size()) + options.greedy;
    needs.tokenizer = false;
    needs.status = stderr;
    std::optional<LayerDump> dump;
    if (!options.dumpLayers.empty()) needs.dump = &dump.emplace(options.dumpLayers);
    Session session(options.model, needs);
    Engine& engine = session.engine();

    nlohmann::json result = {{"prompt", tokens}, {"vocab", session.arch().config.vocabSize}};
    if (!options.out.empty() || dump) {
        std::optional<OutputFile> out;
        if (!options.out.empty()) out.emplace(options.out);
        int rows = 0;
        engine.score(tokens, 0, [&](int, std::span<const float> logits) {
            if (out) out->write(std::as_bytes(logits));
            rows++;
        });
        result["rows"] = rows;
        if (out) {
            out->finish();
            result["out"] = options.out;
        }
        if (dump) {
            dump->finish();
            result["layers"] = options.dumpLayers;
        }
    }
    if (options.greedy > 0) result["greedy"] = answer(engine, {tokens, {.temperature = 0.0f}, {options.greedy, {}}});
    fmt::print("{}\n", result.dump());
    session.finish();
    return 0;
}

}  // namespace dllama
