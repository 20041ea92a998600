#include <algorithm>
#include <random>

#include "app/interrupt.hpp"
#include "app/options.hpp"
#include "app/run-report.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"

namespace dllama {

int runInference(const InferenceOptions& options) {
    if (options.steps < 0)
        throw ConfigError("--steps is {}, must be 0 (to the end of the answer) or more", options.steps);
    checkSamplingParams(options.sampling);
    Session session(options.model, {});
    std::string prompt = options.prompt;
    if (prompt.empty() && session.isDemo()) prompt = "[gMASK]<sop>Once upon a time, there was a little dragon named";
    if (prompt.empty()) throw ConfigError("Prompt is required: --prompt \"...\"");

    const std::vector<int> tokens = encodePrompt(session, prompt);
    Engine& engine = session.engine();
    // Like distributed-llama, --steps counts all positions, those of the prompt too.
    int positions = engine.maxPositions();
    if (options.steps > 0) positions = std::min(positions, options.steps);
    if (static_cast<int>(tokens.size()) >= positions)
        throw ConfigError("the prompt has {} tokens, {} positions are there ({}): no room for an answer", tokens.size(),
                          positions, options.steps > 0 && options.steps <= positions ? "--steps" : "--max-seq-len");

    SamplingParams sampling = options.sampling;
    if (!options.seedGiven) sampling.seed = std::random_device{}();
    const int most = positions - static_cast<int>(tokens.size());
    engine.submit({tokens, sampling, {most, session.stopTokens()}});

    Interrupt interrupt;
    RunReport report;
    StreamDecoder decoder(session.tokenizer(), false);
    fmt::print("{}\n", prompt);
    while (engine.running() && !interrupt.raised()) {
        const StepReport step = engine.step();
        report.add(step);
        if (step.nPrefillTokens > 0) printEvaluated(step);
        for (const TokenEvent& event : step.events) {
            const std::string piece = event.finish == Finish::StopToken ? "" : decoder.push(event.token);
            // The first token comes out of the prompt's own step.
            printPredicted(step.nPrefillTokens > 0 ? StepReport{} : step, piece.empty() ? "~" : piece);
        }
        flushOutput();
    }
    if (interrupt.raised()) fmt::print("🛑 Interrupted\n");
    report.print(session.cluster());
    session.finish();
    return interrupt.raised() ? 130 : 0;
}

}  // namespace dllama
