#include "grammar/schema-merge.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <iterator>
#include <span>

#include "base/errors.hpp"

namespace dllama::grammar {
namespace {

using Type = PythonValue::Type;
using std::string_view;

constexpr int kMaxReferences = 64;      // one behind the other
constexpr size_t kMaxMerged = 100'000;  // keywords and properties
constexpr size_t kMaxChoices = 256;

constexpr string_view kUnsupported[] = {"not",
                                        "if",
                                        "then",
                                        "else",
                                        "dependencies",
                                        "contains",
                                        "minContains",
                                        "dependentRequired",
                                        "maxContains",
                                        "$dynamicRef",
                                        "$recursiveRef",
                                        "dependentSchemas",
                                        "unevaluatedItems"};
constexpr string_view kKnown[] = {"$ref",
                                  "allOf",
                                  "anyOf",
                                  "oneOf",
                                  "type",
                                  "enum",
                                  "const",
                                  "properties",
                                  "required",
                                  "minimum",
                                  "maximum",
                                  "minItems",
                                  "maxItems",
                                  "minLength",
                                  "maxLength",
                                  "pattern",
                                  "format",
                                  "items",
                                  "$defs",
                                  "prefixItems",
                                  "definitions",
                                  "multipleOf",
                                  "minProperties",
                                  "maxProperties",
                                  "uniqueItems",
                                  "exclusiveMinimum",
                                  "exclusiveMaximum",
                                  "propertyNames",
                                  "patternProperties",
                                  "additionalProperties",
                                  "additionalItems",
                                  "unevaluatedProperties"};

bool isIn(string_view word, std::span<const string_view> words) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

std::vector<string_view> typesOf(const PythonValue& type) {
    std::vector<string_view> types;
    if (type.isString()) types.push_back(type.text);
    for (const PythonValue& one : type.items) types.push_back(one.text);
    return types;
}

double numberOf(const PythonValue& value) {
    return std::strtod(value.text.c_str(), nullptr);
}

PythonValue stringOf(string_view text) {
    PythonValue value;
    value.type = Type::String;
    value.text = text;
    return value;
}

bool equal(const PythonValue& a, const PythonValue& b) {
    return toPythonJson(a) == toPythonJson(b);
}

}  // namespace

void failSchema(string_view place, string_view keyword, string_view what) {
    throw ConfigError("the schema's {}{}{}: {}", place, keyword.empty() ? "" : "/", keyword, what);
}

bool isAnnotation(string_view keyword) {
    return !isIn(keyword, kKnown) && !isIn(keyword, kUnsupported);
}

PythonValue booleanSchema(bool allowsAll) {
    PythonValue value;
    value.type = Type::Boolean;
    value.boolean = allowsAll;
    return value;
}

PythonValue schemaOf(std::string keyword, PythonValue value) {
    PythonValue schema;
    schema.type = Type::Object;
    schema.members.push_back({std::move(keyword), std::move(value)});
    return schema;
}

PythonValue listOf(std::vector<PythonValue> items) {
    PythonValue list;
    list.type = Type::List;
    list.items = std::move(items);
    return list;
}

void setKeyword(PythonValue& schema, string_view keyword, PythonValue value) {
    for (PythonValue::Member& member : schema.members) {
        if (member.name != keyword) continue;
        member.value = std::move(value);
        return;
    }
    schema.members.push_back({std::string(keyword), std::move(value)});
}

const PythonValue& SchemaMerger::resolve(string_view place, const PythonValue& reference) const {
    if (!reference.isString()) failSchema(place, "$ref", "not a string");
    string_view rest = reference.text;
    const auto fail = [&](string_view what) {
        failSchema(place, "$ref", fmt::format("{:?} {}", reference.text, what));
    };
    if (!rest.starts_with('#')) fail("leads out of the schema");
    rest.remove_prefix(1);
    if (!rest.empty() && !rest.starts_with('/')) fail("is no JSON pointer");
    const PythonValue* at = &root_;
    while (!rest.empty()) {
        rest.remove_prefix(1);
        const string_view part = rest.substr(0, rest.find('/'));
        rest.remove_prefix(part.size());
        std::string name;
        for (size_t i = 0; i < part.size(); i++) {
            unsigned value = 0;
            if (part.substr(i, 2) == "~0" || part.substr(i, 2) == "~1") {
                name += part[++i] == '0' ? '~' : '/';
            } else if (part[i] == '%' && i + 2 < part.size() &&
                       std::from_chars(part.data() + i + 1, part.data() + i + 3, value, 16).ptr ==
                           part.data() + i + 3) {
                name += static_cast<char>(value);
                i += 2;
            } else {
                name += part[i];
            }
        }
        if (at->type == Type::List) {
            size_t index = 0;
            const auto end = name.data() + name.size();
            const bool isNumber = !name.empty() && std::from_chars(name.data(), end, index).ptr == end;
            at = isNumber && index < at->items.size() ? &at->items[index] : nullptr;
        } else {
            at = at->find(name);
        }
        if (!at) fail("leads to nothing");
    }
    return *at;
}

PythonValue SchemaMerger::flatten(const PythonValue& schema, const std::string& place, int depth) {
    if (schema.type == Type::Boolean) return schema;
    if (!schema.isObject()) failSchema(place, "", "a schema is an object, true or false");
    if (depth > kMaxReferences)
        failSchema(place, "$ref", fmt::format("more than {} references in a row", kMaxReferences));
    PythonValue flat;
    flat.type = Type::Object;
    for (const auto& [keyword, value] : schema.members) {
        if (isIn(keyword, kUnsupported)) failSchema(place, keyword, "not supported");
        if (keyword == "unevaluatedProperties" && value.type != Type::Boolean)
            failSchema(place, keyword, "only true and false are supported");
        if (keyword == "$ref" || keyword == "allOf" || keyword == "$defs" || keyword == "definitions") continue;
        if (!isAnnotation(keyword)) flat.members.push_back({keyword, value});
    }
    if (const PythonValue* reference = schema.find("$ref")) {
        const PythonValue target = flatten(resolve(place, *reference), place, depth + 1);
        flat = merge(target, flat, place);
    }
    if (const PythonValue* all = schema.find("allOf")) {
        if (all->type != Type::List || all->items.empty()) failSchema(place, "allOf", "not a list of schemas");
        for (const PythonValue& part : all->items) flat = merge(flat, flatten(part, place, depth + 1), place);
    }
    return flat;
}

PythonValue SchemaMerger::merge(PythonValue a, const PythonValue& b, const std::string& place) {
    if (a.type == Type::Boolean) return a.boolean ? b : a;
    if (b.type == Type::Boolean) return b.boolean ? a : b;
    const auto forbids = [](const PythonValue& schema) {
        const PythonValue* more = schema.find("additionalProperties");
        return more && more->type == Type::Boolean && !more->boolean;
    };
    // A property that only one of the two declares is an additional one to the other.
    PythonValue right = b;
    const auto restrict = [&](PythonValue& schema, const PythonValue& other) {
        const PythonValue* more = other.find("additionalProperties");
        const PythonValue* declared = other.find("properties");
        if (!more || (more->type == Type::Boolean && more->boolean)) return;
        for (PythonValue::Member& keyword : schema.members) {
            if (keyword.name != "properties") continue;
            for (auto& [name, value] : keyword.value.members) {
                if (declared && declared->find(name)) continue;
                value = forbids(other) ? booleanSchema(false) : schemaOf("allOf", listOf({value, *more}));
            }
        }
    };
    const PythonValue left = a;
    restrict(a, b);
    restrict(right, left);
    for (const auto& [keyword, value] : right.members) mergeKeyword(a, keyword, value, place);
    return a;
}

void SchemaMerger::mergeKeyword(PythonValue& into, const std::string& keyword, const PythonValue& value,
                                const std::string& place) {
    if (++nMerged_ > kMaxMerged) failSchema(place, keyword, "the schema is too large once allOf and $ref are resolved");
    const PythonValue* present = into.find(keyword);
    if (!present) {
        into.members.push_back({keyword, value});
        return;
    }
    if (isAnnotation(keyword) || equal(*present, value)) return;
    const auto both = [&](const PythonValue& a, const PythonValue& b) { return schemaOf("allOf", listOf({a, b})); };
    if (keyword == "type") {
        std::vector<PythonValue> types;
        const auto others = typesOf(value);
        for (string_view type : typesOf(*present)) {
            if (isIn(type, others)) {
                types.push_back(stringOf(type));
            } else if ((type == "integer" && isIn("number", others)) || (type == "number" && isIn("integer", others))) {
                types.push_back(stringOf("integer"));
            }
        }
        if (types.empty()) {
            into = booleanSchema(false);
        } else {
            setKeyword(into, keyword, listOf(std::move(types)));
        }
    } else if (keyword == "properties") {
        PythonValue properties = *present;
        for (const auto& [name, schema] : value.members) {
            nMerged_++;
            const PythonValue* other = properties.find(name);
            setKeyword(properties, name, other && !equal(*other, schema) ? both(*other, schema) : schema);
        }
        setKeyword(into, keyword, std::move(properties));
    } else if (keyword == "required") {
        PythonValue names = *present;
        for (const PythonValue& name : value.items) {
            const bool known = std::any_of(names.items.begin(), names.items.end(),
                                           [&](const PythonValue& one) { return equal(one, name); });
            if (!known) names.items.push_back(name);
        }
        setKeyword(into, keyword, std::move(names));
    } else if (keyword == "enum") {
        std::vector<PythonValue> values;
        for (const PythonValue& one : present->items) {
            if (std::any_of(value.items.begin(), value.items.end(),
                            [&](const auto& other) { return equal(one, other); }))
                values.push_back(one);
        }
        setKeyword(into, keyword, listOf(std::move(values)));
    } else if (keyword == "items" || keyword == "additionalProperties" || keyword == "propertyNames") {
        setKeyword(into, keyword, both(*present, value));
    } else if (keyword == "minimum" || keyword == "exclusiveMinimum" || keyword == "minLength" ||
               keyword == "minItems" || keyword == "minProperties") {
        if (numberOf(value) > numberOf(*present)) setKeyword(into, keyword, value);
    } else if (keyword == "maximum" || keyword == "exclusiveMaximum" || keyword == "maxLength" ||
               keyword == "maxItems" || keyword == "maxProperties") {
        if (numberOf(value) < numberOf(*present)) setKeyword(into, keyword, value);
    } else if (keyword == "anyOf") {
        if (present->items.size() * value.items.size() > kMaxChoices)
            failSchema(place, keyword, fmt::format("more than {} combinations of choices", kMaxChoices));
        std::vector<PythonValue> choices;
        for (const PythonValue& one : present->items) {
            for (const PythonValue& other : value.items) choices.push_back(both(one, other));
        }
        setKeyword(into, keyword, listOf(std::move(choices)));
    } else if (keyword == "unevaluatedProperties") {
        setKeyword(into, keyword, booleanSchema(false));
    } else if (keyword == "const") {
        into = booleanSchema(false);
    } else {
        failSchema(place, keyword, "two different values are to hold at once, which is not supported");
    }
}

}  // namespace dllama::grammar
