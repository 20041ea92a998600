#pragma once

#include <string>

#include "cluster/cluster-forward.hpp"
#include "engine/engine.hpp"

namespace dllama {

/// The lines that distributed-llama prints, which scripts read.
void printEvaluated(const StepReport& step);
void printPredicted(const StepReport& step, const std::string& piece);

/// Totals of a run and its closing tables.
class RunReport {
  public:
    void add(const StepReport& step);
    /// With a table of the nodes if there are several; `cluster` is null on one machine.
    void print(const ClusterForward* cluster = nullptr) const;
    double promptTokensPerSecond() const { return promptSeconds_ > 0.0 ? nPrompt_ / promptSeconds_ : 0.0; }
    double answerTokensPerSecond() const { return answerSeconds_ > 0.0 ? nAnswer_ / answerSeconds_ : 0.0; }
    int nPrefillTokens() const { return nPrompt_; }
    int nDecodeTokens() const { return nAnswer_; }

  private:
    int nBatches_ = 0;
    int nPrompt_ = 0;
    int nAnswer_ = 0;
    double promptSeconds_ = 0.0;
    double answerSeconds_ = 0.0;
};

}  // namespace dllama
