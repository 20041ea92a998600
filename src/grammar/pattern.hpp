#pragma once

#include <string_view>
#include <vector>

#include "grammar/char-set.hpp"
#include "grammar/grammar.hpp"

namespace dllama::grammar {

/// A regular expression of ECMA-262, as far as it is regular: sets, groups, choices, repetitions, and anchors at the
/// beginning and end of the whole or of one of its alternatives. As JSON Schema has it, it may match anywhere in the
/// text where it is not anchored.
class Pattern {
  public:
    /// Throws ConfigError, saying what is not supported (look-around, back references, word boundaries, ...) or wrong.
    explicit Pattern(std::string_view expression);

    /// Adds the texts that match and have min to max characters; gives the node behind them. Throws ConfigError if
    /// that makes too many states.
    int add(Grammar& grammar, int from, Spelling spelling, int min = 0, int max = Grammar::kUnbounded) const;

  private:
    friend class PatternBuilder;

    struct Edge {
        CharSet set;
        int to;
    };
    struct State {
        std::vector<Edge> edges;
        std::vector<int> silent;
    };
    std::vector<State> states_;
    int start_ = 0, end_ = 0;
    int shortest_ = 0, longest_ = 0;  // lengths of what matches
};

}  // namespace dllama::grammar
