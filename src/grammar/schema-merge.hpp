#pragma once

#include <string>
#include <string_view>

#include "text/python-json.hpp"

namespace dllama::grammar {

/// Throws ConfigError about a keyword of the schema at `place`, a JSON pointer that begins with #.
[[noreturn]] void failSchema(std::string_view place, std::string_view keyword, std::string_view what);

/// A keyword that restricts nothing: title, description, default and the like, and those of no vocabulary.
bool isAnnotation(std::string_view keyword);

PythonValue booleanSchema(bool allowsAll);
/// The schema {keyword: value}.
PythonValue schemaOf(std::string keyword, PythonValue value);
PythonValue listOf(std::vector<PythonValue> items);
void setKeyword(PythonValue& schema, std::string_view keyword, PythonValue value);

/// Resolves references and allOf within one document.
class SchemaMerger {
  public:
    explicit SchemaMerger(const PythonValue& root) : root_(root) {}

    /// What the reference means. Throws ConfigError where it leads to nothing, or out of the document.
    const PythonValue& resolve(std::string_view place, const PythonValue& reference) const;

    /// The schema without $ref and allOf: true, false, or an object. Schemas inside it stay as they are.
    PythonValue flatten(const PythonValue& schema, const std::string& place) { return flatten(schema, place, 0); }

    /// What fits both, of flat schemas. Throws ConfigError for keywords of which it is not known.
    PythonValue merge(PythonValue a, const PythonValue& b, const std::string& place);

  private:
    PythonValue flatten(const PythonValue& schema, const std::string& place, int depth);
    void mergeKeyword(PythonValue& into, const std::string& keyword, const PythonValue& value,
                      const std::string& place);

    const PythonValue& root_;
    size_t nMerged_ = 0;
};

}  // namespace dllama::grammar
