#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "grammar/constraint.hpp"
#include "grammar/vocabulary.hpp"
#include "text/chat-format.hpp"

namespace dllama::grammar {

/// Where an answer begins.
enum class Thoughts {
    None,  ///< with the answer proper
    May,   ///< with thoughts or without
    Open,  ///< inside thoughts: the prompt has opened them
};

/// The grammars of the answers of one model. What was compiled is kept for the next request with the same schema.
/// Any number of threads may use one.
class AnswerGrammars {
  public:
    /// The tokenizer must outlive this and every constraint.
    AnswerGrammars(const Tokenizer& tokenizer, ChatFormat format);

    /// Thoughts, then a JSON text that fits the schema. Throws ConfigError with a text for the client.
    std::unique_ptr<TokenConstraint> jsonSchema(std::string_view schema, Thoughts thoughts);
    /// Thoughts, then any JSON object.
    std::unique_ptr<TokenConstraint> jsonObject(Thoughts thoughts);

  private:
    std::unique_ptr<TokenConstraint> constraint(std::string key, const std::function<Grammar()>& compile);

    const Tokenizer& tokenizer_;
    const ChatFormat format_;
    const std::shared_ptr<const Vocabulary> vocabulary_;
    std::mutex mutex_;
    std::list<std::pair<std::string, std::shared_ptr<Automaton>>> kept_;  // the last used first
};

}  // namespace dllama::grammar
