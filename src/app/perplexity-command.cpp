#include <algorithm>
#include <cmath>

#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"

namespace dllama {

namespace {

/// Natural logarithm of the probability of `token`, in double.
double logProbability(std::span<const float> logits, int token) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
    return static_cast<double>(logits[token]) - largest - std::log(sum);
}

std::vector<int> tokensToScore(const PerplexityOptions& options, const Session& session) {
    if (!options.idsFile.empty()) return readIdsFile(options.idsFile);
    return encodePrompt(session, options.textFile.empty() ? options.prompt : readTextFile(options.textFile));
}

}  // namespace

int runPerplexity(const PerplexityOptions& options) {
    const int sources = !options.prompt.empty() + !options.textFile.empty() + !options.idsFile.empty();
    if (sources != 1) throw ConfigError("perplexity needs one of --prompt, --text-file and --ids-file");
    if (options.chunk < 0 || options.chunk == 1) throw ConfigError("--chunk is {}, must be 2 or more", options.chunk);
    SessionNeeds needs;
    needs.maxOutputs = 128;
    needs.tokenizer = options.idsFile.empty();
    Session session(options.model, needs);

    const std::vector<int> tokens = tokensToScore(options, session);
    const int context = session.engine().maxPositions();
    // A text longer than the context is scored in pieces that each start afresh.
    const int chunk = std::min(options.chunk > 0 ? options.chunk : context, static_cast<int>(tokens.size()));
    if (chunk > context) throw ConfigError("--chunk is {}, the context has {}", chunk, context);
    if (chunk < 2) throw ConfigError("{} token: perplexity needs 2 or more", tokens.size());
    fmt::print("Evaluating {} tokens...\n", tokens.size());
    double sum = 0.0;
    int scored = 0;
    for (size_t begin = 0; begin + 1 < tokens.size(); begin += chunk) {
        const std::span<const int> part =
            std::span(tokens).subspan(begin, std::min<size_t>(chunk, tokens.size() - begin));
        session.engine().score(part, 0, [&](int i, std::span<const float> logits) {
            if (i + 1 == static_cast<int>(part.size())) return;
            const double logProb = logProbability(logits, part[i + 1]);
            sum += logProb;
            scored++;
            if (options.idsFile.empty())
                fmt::print("{:5} / {}, prob={:.6f}\n", scored, tokens.size() - 1, std::exp(logProb));
        });
        if (!options.idsFile.empty())
            fmt::print("{:5} / {}, perplexity={:.4f}\n", begin + part.size(), tokens.size(), std::exp(-sum / scored));
        flushOutput();
    }
    const double mean = sum / scored;
    fmt::print("\nResults\n   perplexity: {:.6f} (lower = better)\n   avgLogProb: {:.6f}\n   bitPerToken: {:.6f}\n",
               std::exp(-mean), mean, -mean / std::log(2.0));
    session.finish();
    return 0;
}

}  // namespace dllama
