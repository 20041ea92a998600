#include "grammar/answer-grammars.hpp"

#include "base/errors.hpp"
#include "grammar/answer-parts.hpp"
#include "grammar/json-schema.hpp"

namespace dllama::grammar {
namespace {

constexpr size_t kMaxSchemaBytes = 1 << 20;
/// Grammars kept: each has up to some tens of MB of states and masks.
constexpr size_t kMaxKept = 16;

}  // namespace

AnswerGrammars::AnswerGrammars(const Tokenizer& tokenizer, ChatFormat format)
    : tokenizer_(tokenizer), format_(format), vocabulary_(std::make_shared<const Vocabulary>(tokenizer)) {}

std::unique_ptr<TokenConstraint> AnswerGrammars::constraint(std::string key, const std::function<Grammar()>& compile) {
    std::shared_ptr<Automaton> automaton;
    {
        const std::lock_guard lock(mutex_);
        for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
            if (kept->first != key) continue;
            kept_.splice(kept_.begin(), kept_, kept);
            automaton = kept->second;
            break;
        }
    }
    if (!automaton) {
        automaton = std::make_shared<Automaton>(compile(), vocabulary_);
        const std::lock_guard lock(mutex_);
        kept_.emplace_front(std::move(key), automaton);
        if (kept_.size() > kMaxKept) kept_.pop_back();
    }
    return std::make_unique<GrammarConstraint>(std::move(automaton), tokenizer_);
}

std::unique_ptr<TokenConstraint> AnswerGrammars::jsonSchema(std::string_view schema, Thoughts thoughts) {
    if (schema.size() > kMaxSchemaBytes)
        throw ConfigError("the schema has {} bytes, the limit is {}", schema.size(), kMaxSchemaBytes);
    return constraint(fmt::format("schema {} {}", static_cast<int>(thoughts), schema), [&] {
        const PythonValue root = parseJson(schema, "the schema");
        Grammar grammar;
        JsonRules rules(grammar, Spelling::Json);
        SchemaCompiler compiler(rules, root);
        const int answer = grammar.addRule("the answer");
        const int begin = addThoughts(grammar, grammar.start(answer), format_, thoughts, tokenizer_);
        grammar.accept(grammar.call(begin, compiler.rule(root, "#")));
        compiler.finish();
        grammar.finish(answer);
        return grammar;
    });
}

std::unique_ptr<TokenConstraint> AnswerGrammars::jsonObject(Thoughts thoughts) {
    return constraint(fmt::format("object {}", static_cast<int>(thoughts)), [&] {
        Grammar grammar;
        JsonRules rules(grammar, Spelling::Json);
        const int answer = grammar.addRule("the answer");
        const int begin = addThoughts(grammar, grammar.start(answer), format_, thoughts, tokenizer_);
        grammar.accept(grammar.call(begin, rules.anyObject()));
        grammar.finish(answer);
        return grammar;
    });
}

}  // namespace dllama::grammar
