#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "grammar/json-rules.hpp"
#include "grammar/schema-merge.hpp"

namespace dllama::grammar {

/// Compiles JSON schemas (draft 2020-12, and what draft 7 writes differently) into rules of a grammar. All that the
/// rules generate is valid; not all that is valid is generated:
/// - properties come in declared order; with `properties` or `required`, more come only where additionalProperties says
///   so; behind prefixItems nothing comes unless `items` says so;
/// - white space and numbers are bounded (JsonRules), strings of enum, const, pattern and names have one spelling;
/// - without "type", keywords tell the types.
/// Throws ConfigError with the keyword's JSON pointer for what cannot be honoured.
class SchemaCompiler {
  public:
    /// `root`: the document that references are relative to. It and the rules must outlive this.
    SchemaCompiler(JsonRules& rules, const PythonValue& root) : rules_(rules), merger_(root) {}

    /// The rule of the values that fit the schema. It is complete when finish() has been called.
    int rule(const PythonValue& schema, const std::string& place);
    void finish();

    SchemaMerger& merger() { return merger_; }
    /// A property as an object's schema declares it.
    struct Property {
        std::string name;
        PythonValue schema;
        bool required;
    };
    /// The declared and the required properties of a flat schema, in order.
    static std::vector<Property> propertiesOf(const PythonValue& flat, const std::string& place);

    /// The scalar values' texts as one choice.
    static int addTexts(Grammar& grammar, int from, const std::vector<std::string>& texts);
    /// Adds a text that pattern, format, minLength and maxLength allow, without quotes. Nothing if there is none of
    /// these but the lengths.
    static std::optional<int> addPatternText(Grammar& grammar, int from, const PythonValue& flat, Spelling spelling,
                                             const std::string& place);
    /// A whole number keyword, at most a billion.
    static int countOf(const PythonValue& flat, std::string_view keyword, int otherwise, const std::string& place);

  private:
    struct Waiting {
        int rule;
        PythonValue schema;
        std::string place;
    };
    void compile(const Waiting& waiting);
    void addChoices(int start, int end, PythonValue flat, std::string_view keyword, const std::string& place);
    void checkDisjoint(const std::vector<PythonValue>& choices, const std::string& place);
    void addEnum(int start, int end, const PythonValue& flat, const std::vector<std::string>& types,
                 const std::string& place);
    int addString(int from, const PythonValue& flat, const std::string& place);
    int addNumberOf(int from, bool integer, const PythonValue& flat, const std::string& place);
    int addArray(int from, const PythonValue& flat, const std::string& place);
    int addObject(int from, const PythonValue& flat, const std::string& place);
    int addMap(int from, const PythonValue& flat, const std::string& place);
    int anyValueOr(const PythonValue* schema, const std::string& place);

    JsonRules& rules_;
    SchemaMerger merger_;
    std::unordered_map<std::string, int> ruleOf_;  // by the schema's text
    std::vector<Waiting> waiting_;
    size_t nBytes_ = 0;
};

}  // namespace dllama::grammar
