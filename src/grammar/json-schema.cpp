#include "grammar/json-schema.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "base/errors.hpp"
#include "grammar/pattern.hpp"
#include "grammar/string-formats.hpp"

namespace dllama::grammar {
namespace {

using Type = PythonValue::Type;
using std::string_view;

constexpr size_t kMaxBytes = 16 << 20;  // of all schemas compiled, as text
constexpr int kMaxCount = 1'000'000'000;
constexpr size_t kMaxChoices = 256;

constexpr string_view kAllTypes[] = {"null", "boolean", "integer", "number", "string", "array", "object"};

/// The types that a keyword is about.
constexpr struct {
    string_view keyword, type;
} kTypeOfKeyword[] = {
    {"properties", "object"},
    {"required", "object"},
    {"additionalProperties", "object"},
    {"propertyNames", "object"},
    {"patternProperties", "object"},
    {"minProperties", "object"},
    {"maxProperties", "object"},
    {"items", "array"},
    {"prefixItems", "array"},
    {"minItems", "array"},
    {"maxItems", "array"},
    {"uniqueItems", "array"},
    {"minLength", "string"},
    {"maxLength", "string"},
    {"pattern", "string"},
    {"format", "string"},
    {"minimum", "number"},
    {"maximum", "number"},
    {"multipleOf", "number"},
    {"exclusiveMinimum", "number"},
    {"exclusiveMaximum", "number"},
};

bool isFalse(const PythonValue* value) {
    return value && value->type == Type::Boolean && !value->boolean;
}

bool isWhole(const PythonValue& number) {
    return number.type == Type::Number && number.text.find_first_of(".eE") == std::string::npos;
}

std::string typeName(const PythonValue& value) {
    switch (value.type) {
        case Type::Null:
            return "null";
        case Type::Boolean:
            return "boolean";
        case Type::Number:
            return isWhole(value) ? "integer" : "number";
        case Type::String:
            return "string";
        case Type::List:
            return "array";
        case Type::Object:
            return "object";
    }
    return "";
}

std::string escaped(string_view name) {
    std::string out;
    for (char c : name) out += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
    return out;
}

bool has(const std::vector<std::string>& types, string_view type) {
    return std::find(types.begin(), types.end(), type) != types.end();
}

/// The types that a flat schema allows, "number" without "integer" beside it.
std::vector<std::string> typesOf(const PythonValue& flat, const std::string& place) {
    std::vector<std::string> types;
    if (const PythonValue* type = flat.find("type")) {
        const std::vector<PythonValue> list = type->type == Type::List ? type->items : std::vector{*type};
        for (const PythonValue& one : list) {
            if (!one.isString() ||
                std::find(std::begin(kAllTypes), std::end(kAllTypes), one.text) == std::end(kAllTypes))
                failSchema(place, "type", fmt::format("{} is no type", toPythonJson(one)));
            types.push_back(one.text);
        }
        if (types.empty()) failSchema(place, "type", "no type at all");
    } else {
        for (const auto& [keyword, about] : kTypeOfKeyword) {
            if (flat.find(keyword) && !has(types, about)) types.emplace_back(about);
        }
        if (types.empty()) types.assign(std::begin(kAllTypes), std::end(kAllTypes));
    }
    if (has(types, "number")) std::erase(types, "integer");
    return types;
}

/// The values of enum and const; nothing if the schema has neither.
std::optional<std::vector<PythonValue>> valuesOf(const PythonValue& flat, const std::string& place) {
    const PythonValue *list = flat.find("enum"), *one = flat.find("const");
    if (!list && !one) return std::nullopt;
    if (list && list->type != Type::List) failSchema(place, "enum", "not a list");
    std::vector<PythonValue> values = list ? list->items : std::vector{*one};
    if (list && one) {
        const std::string text = toPythonJson(*one);
        std::erase_if(values, [&](const PythonValue& value) { return toPythonJson(value) != text; });
    }
    return values;
}

}  // namespace

int SchemaCompiler::countOf(const PythonValue& flat, string_view keyword, int otherwise, const std::string& place) {
    const PythonValue* value = flat.find(keyword);
    if (!value) return otherwise;
    std::string text = value->text;
    if (text.ends_with(".0")) text.resize(text.size() - 2);
    if (value->type != Type::Number || text.empty() || text.find_first_not_of("0123456789") != std::string::npos)
        failSchema(place, keyword, "not a whole number from 0 on");
    int count = kMaxCount;
    if (text.size() < 10) std::from_chars(text.data(), text.data() + text.size(), count);
    return count;
}

int SchemaCompiler::rule(const PythonValue& schema, const std::string& place) {
    const PythonValue* at = &schema;
    // A reference with nothing beside it is the rule of what it leads to.
    for (int n = 0; at->isObject(); n++) {
        const PythonValue* reference = at->find("$ref");
        const bool alone = reference && std::all_of(at->members.begin(), at->members.end(), [](const auto& member) {
                               return member.name == "$ref" || isAnnotation(member.name);
                           });
        if (!alone) break;
        if (n > 64) failSchema(place, "$ref", "refers to itself without an end");
        at = &merger_.resolve(place, *reference);
    }
    if (at->type == Type::Boolean && at->boolean) return rules_.anyValue();
    std::string text = toPythonJson(*at);
    nBytes_ += text.size();
    if (nBytes_ > kMaxBytes)
        failSchema(place, "",
                   fmt::format("the schema is too large: more than {} bytes with all it refers to", kMaxBytes));
    const auto [found, isNew] = ruleOf_.try_emplace(std::move(text), -1);
    if (isNew) {
        found->second = rules_.grammar().addRule(fmt::format("the schema's {}", place));
        waiting_.push_back({found->second, *at, place});
    }
    return found->second;
}

int SchemaCompiler::anyValueOr(const PythonValue* schema, const std::string& place) {
    return schema ? rule(*schema, place) : rules_.anyValue();
}

void SchemaCompiler::finish() {
    while (!waiting_.empty()) {
        const Waiting next = std::move(waiting_.back());
        waiting_.pop_back();
        compile(next);
    }
}

void SchemaCompiler::compile(const Waiting& waiting) {
    Grammar& grammar = rules_.grammar();
    const std::string& place = waiting.place;
    const int start = grammar.start(waiting.rule), end = grammar.addNode();
    grammar.accept(end);
    PythonValue flat = merger_.flatten(waiting.schema, place);
    if (flat.type == Type::Boolean) {
        if (flat.boolean) grammar.addCall(start, rules_.anyValue(), end);
        return;
    }
    for (string_view keyword : {"anyOf", "oneOf"}) {
        if (flat.find(keyword)) return addChoices(start, end, std::move(flat), keyword, place);
    }
    if (flat.members.empty()) return grammar.addCall(start, rules_.anyValue(), end);
    const std::vector<std::string> types = typesOf(flat, place);
    if (flat.find("enum") || flat.find("const")) return addEnum(start, end, flat, types, place);
    for (const std::string& type : types) {
        int behind = start;
        if (type == "null") {
            behind = grammar.text(start, "null");
        } else if (type == "boolean") {
            grammar.addSilent(grammar.text(start, "true"), end);
            behind = grammar.text(start, "false");
        } else if (type == "string") {
            behind = addString(start, flat, place);
        } else if (type == "array") {
            behind = addArray(start, flat, place);
        } else if (type == "object") {
            behind = addObject(start, flat, place);
        } else {
            behind = addNumberOf(start, type == "integer", flat, place);
        }
        grammar.addSilent(behind, end);
    }
}

void SchemaCompiler::addChoices(int start, int end, PythonValue flat, string_view keyword, const std::string& place) {
    const PythonValue list = *flat.find(keyword);
    if (list.type != Type::List || list.items.empty()) failSchema(place, keyword, "not a list of schemas");
    if (list.items.size() > kMaxChoices) failSchema(place, keyword, fmt::format("more than {} choices", kMaxChoices));
    std::erase_if(flat.members, [&](const auto& member) { return member.name == keyword; });
    std::vector<PythonValue> choices;
    for (size_t i = 0; i < list.items.size(); i++) {
        const std::string at = fmt::format("{}/{}/{}", place, keyword, i);
        choices.push_back(merger_.merge(flat, merger_.flatten(list.items[i], at), at));
        // Where nothing stands beside the choices the document's own schema is compiled, so that recursion ends.
        rules_.grammar().addCall(start, flat.members.empty() ? rule(list.items[i], at) : rule(choices.back(), at), end);
    }
    if (keyword == "oneOf") checkDisjoint(choices, place);
}

/// oneOf wants exactly one to fit: two choices must differ in their types, in their values, or in the values of a
/// property that one of them requires.
void SchemaCompiler::checkDisjoint(const std::vector<PythonValue>& choices, const std::string& place) {
    const auto valuesDiffer = [](const std::vector<PythonValue>& a, const std::vector<PythonValue>& b) {
        std::set<std::string> texts;
        for (const PythonValue& value : a) texts.insert(toPythonJson(value));
        return std::none_of(b.begin(), b.end(), [&](const auto& value) { return texts.contains(toPythonJson(value)); });
    };
    const auto flatOf = [&](const PythonValue& schema) { return merger_.flatten(schema, place); };
    const auto requires_ = [](const PythonValue& schema, string_view name) {
        const PythonValue* required = schema.find("required");
        return required && std::any_of(required->items.begin(), required->items.end(),
                                       [&](const PythonValue& one) { return one.text == name; });
    };
    const auto overlap = [](string_view a, string_view b) {
        return a == b || (a == "integer" && b == "number") || (a == "number" && b == "integer");
    };
    const auto disjoint = [&](const PythonValue& a, const PythonValue& b) {
        if (isFalse(&a) || isFalse(&b)) return true;
        const auto left = valuesOf(a, place), right = valuesOf(b, place);
        if (left && right && valuesDiffer(*left, *right)) return true;
        if (!a.find("type") || !b.find("type")) return false;
        const auto types = typesOf(a, place), others = typesOf(b, place);
        std::vector<std::string> common;
        for (const std::string& one : types) {
            for (const std::string& other : others) {
                if (overlap(one, other)) common.push_back(one);
            }
        }
        if (common.empty()) return true;
        const PythonValue *members = a.find("properties"), *otherMembers = b.find("properties");
        if (common != std::vector<std::string>{"object"}) return false;
        for (const auto& [one, other] : {std::pair{&a, otherMembers}, std::pair{&b, members}}) {
            const PythonValue* required = one->find("required");
            const PythonValue& closed = one == &a ? b : a;
            if (!required || !isFalse(closed.find("additionalProperties"))) continue;
            for (const PythonValue& name : required->items) {
                if (!other || !other->find(name.text)) return true;
            }
        }
        if (!members || !otherMembers) return false;
        return std::any_of(members->members.begin(), members->members.end(), [&](const auto& member) {
            const PythonValue* twin = otherMembers->find(member.name);
            if (!twin || (!requires_(a, member.name) && !requires_(b, member.name))) return false;
            const PythonValue one = flatOf(member.value), other = flatOf(*twin);
            const auto values = valuesOf(one, place), otherValues = valuesOf(other, place);
            return values && otherValues && valuesDiffer(*values, *otherValues);
        });
    };
    for (size_t i = 0; i < choices.size(); i++) {
        for (size_t k = 0; k < i; k++) {
            if (!disjoint(choices[k], choices[i]))
                failSchema(place, "oneOf",
                           fmt::format("choices {} and {} may both fit: use anyOf, or a property with const "
                                       "values that tells them apart",
                                       k, i));
        }
    }
}

void SchemaCompiler::addEnum(int start, int end, const PythonValue& flat, const std::vector<std::string>& types,
                             const std::string& place) {
    const bool list = flat.find("enum") != nullptr;
    for (const auto& [keyword, about] : kTypeOfKeyword) {
        if (flat.find(keyword)) failSchema(place, keyword, "not supported beside enum or const");
    }
    Grammar& grammar = rules_.grammar();
    std::vector<std::string> texts;
    const std::vector<PythonValue> values = *valuesOf(flat, place);
    for (const PythonValue& value : values) {
        const std::string type = typeName(value);
        if (flat.find("type") && !has(types, type) && !(type == "integer" && has(types, "number"))) continue;
        if (value.isContainer()) {
            grammar.addSilent(rules_.literal(start, value), end);
        } else {
            texts.push_back(value.isString() ? jsonSpelling(value.text, rules_.spelling()) : toPythonJson(value));
        }
    }
    if (list && flat.find("enum")->items.empty()) failSchema(place, "enum", "no values");
    grammar.addSilent(addTexts(grammar, start, texts), end);
}

int SchemaCompiler::addTexts(Grammar& grammar, int from, const std::vector<std::string>& texts) {
    const int end = grammar.addNode();
    std::map<std::pair<int, char>, int> next;
    for (const std::string& text : texts) {
        int at = from;
        for (char c : text) {
            const auto [found, isNew] = next.try_emplace({at, c}, -1);
            if (isNew) found->second = grammar.byte(at, c);
            at = found->second;
        }
        grammar.addSilent(at, end);
    }
    return end;
}

std::optional<int> SchemaCompiler::addPatternText(Grammar& grammar, int from, const PythonValue& flat,
                                                  Spelling spelling, const std::string& place) {
    const PythonValue *pattern = flat.find("pattern"), *format = flat.find("format");
    if (pattern && !pattern->isString()) failSchema(place, "pattern", "not a string");
    if (format && !format->isString()) failSchema(place, "format", "not a string");
    if (format && !isStandardFormat(format->text)) format = nullptr;
    if (!pattern && !format) return std::nullopt;
    if (pattern && format) failSchema(place, "format", "not supported beside pattern");
    const string_view keyword = pattern ? "pattern" : "format";
    const string_view expression = pattern ? string_view(pattern->text) : patternOfFormat(format->text);
    if (format && expression.empty()) failSchema(place, "format", fmt::format("{:?} is not supported", format->text));
    const int min = countOf(flat, "minLength", 0, place);
    const int max = countOf(flat, "maxLength", Grammar::kUnbounded, place);
    try {
        return Pattern(expression).add(grammar, from, spelling, min, max);
    } catch (const ConfigError& error) {
        failSchema(place, keyword, error.what());
    }
}

int SchemaCompiler::addString(int from, const PythonValue& flat, const std::string& place) {
    Grammar& grammar = rules_.grammar();
    const int open = grammar.byte(from, '"');
    if (const auto text = addPatternText(grammar, open, flat, rules_.spelling(), place))
        return grammar.byte(*text, '"');
    const int min = countOf(flat, "minLength", 0, place);
    const int max = countOf(flat, "maxLength", Grammar::kUnbounded, place);
    if (min > max) return grammar.addNode();
    return rules_.string(from, min, max);
}

int SchemaCompiler::addNumberOf(int from, bool integer, const PythonValue& flat, const std::string& place) {
    const auto boundOf = [&](string_view inclusive, string_view exclusive, bool least) {
        std::optional<NumberBounds::Bound> bound;
        for (string_view keyword : {inclusive, exclusive}) {
            const PythonValue* value = flat.find(keyword);
            if (!value) continue;
            if (value->type != Type::Number) failSchema(place, keyword, "not a number");
            const double number = std::strtod(value->text.c_str(), nullptr);
            const double other = bound ? std::strtod(bound->value.c_str(), nullptr) : 0;
            // Of equal bounds the exclusive one, which comes second, holds.
            if (!bound || (least ? number >= other : number <= other)) bound = {value->text, keyword == exclusive};
        }
        return bound;
    };
    const auto least = boundOf("minimum", "exclusiveMinimum", true);
    const auto most = boundOf("maximum", "exclusiveMaximum", false);
    const PythonValue* multiple = flat.find("multipleOf");
    if (multiple && multiple->type != Type::Number) failSchema(place, "multipleOf", "not a number");
    try {
        return addNumber(rules_.grammar(), from, integer,
                         {least ? &*least : nullptr, most ? &*most : nullptr, multiple ? &multiple->text : nullptr});
    } catch (const ConfigError& error) {
        failSchema(place, multiple ? "multipleOf" : least ? "minimum" : "maximum", error.what());
    }
}

int SchemaCompiler::addArray(int from, const PythonValue& flat, const std::string& place) {
    Grammar& grammar = rules_.grammar();
    const PythonValue *prefix = flat.find("prefixItems"), *items = flat.find("items");
    if (items && items->type == Type::List) {  // draft 7
        if (!prefix) prefix = items;
        items = flat.find("additionalItems");
    }
    if (prefix && prefix->type != Type::List) failSchema(place, "prefixItems", "not a list of schemas");
    const int min = countOf(flat, "minItems", 0, place);
    int max = countOf(flat, "maxItems", Grammar::kUnbounded, place);
    const PythonValue* unique = flat.find("uniqueItems");
    if (unique && !isFalse(unique) && max > 1) failSchema(place, "uniqueItems", "not supported");
    const size_t nFirst = prefix ? prefix->items.size() : 0;
    if (isFalse(items) || (nFirst > 0 && !items && min <= static_cast<int>(nFirst)))
        max = std::min(max, static_cast<int>(nFirst));
    if (min > max) return grammar.addNode();
    if (nFirst == 0) return rules_.array(from, anyValueOr(items, place + "/items"), min, max);
    const int close = grammar.addNode();
    int at = grammar.byte(from, '[');
    if (min == 0) grammar.addSilent(rules_.optionalSpace(at), close);
    const int n = std::min(static_cast<int>(nFirst), max);
    for (int i = 0; i < n; i++) {
        at = i == 0 ? rules_.optionalSpace(at) : rules_.comma(at);
        const auto& schema = prefix->items[static_cast<size_t>(i)];
        at = grammar.call(at, rule(schema, fmt::format("{}/prefixItems/{}", place, i)));
        if (i + 1 >= min) grammar.addSilent(rules_.optionalSpace(at), close);
    }
    if (max > n) {
        const int more = grammar.addRule("items");
        grammar.accept(grammar.call(rules_.comma(grammar.start(more)), anyValueOr(items, place + "/items")));
        const int rest = max == Grammar::kUnbounded ? max : max - n;
        grammar.addSilent(rules_.optionalSpace(grammar.call(at, more, std::max(min - n, 1), rest)), close);
    }
    return grammar.byte(close, ']');
}

std::vector<SchemaCompiler::Property> SchemaCompiler::propertiesOf(const PythonValue& flat, const std::string& place) {
    std::vector<Property> properties;
    const PythonValue *declared = flat.find("properties"), *required = flat.find("required");
    if (declared && !declared->isObject()) failSchema(place, "properties", "not an object");
    if (required && required->type != Type::List) failSchema(place, "required", "not a list of names");
    std::set<string_view> names;
    if (required) {
        for (const PythonValue& name : required->items) {
            if (!name.isString()) failSchema(place, "required", "not a list of names");
            names.insert(name.text);
        }
    }
    if (declared) {
        for (const auto& [name, schema] : declared->members)
            properties.push_back({name, schema, names.erase(name) > 0});
    }
    if (!required) return properties;
    const PythonValue* more = flat.find("additionalProperties");
    for (const PythonValue& name : required->items) {
        if (names.erase(name.text) > 0) properties.push_back({name.text, more ? *more : booleanSchema(true), true});
    }
    return properties;
}

int SchemaCompiler::addObject(int from, const PythonValue& flat, const std::string& place) {
    const std::vector<Property> properties = propertiesOf(flat, place);
    if (properties.empty()) return addMap(from, flat, place);
    for (string_view keyword : {"propertyNames", "patternProperties"}) {
        if (flat.find(keyword)) failSchema(place, keyword, "not supported beside properties");
    }
    const PythonValue* more = flat.find("additionalProperties");
    if (isFalse(more)) more = nullptr;
    const auto nRequired =
        std::count_if(properties.begin(), properties.end(), [](const auto& p) { return p.required; });
    if (countOf(flat, "minProperties", 0, place) > nRequired)
        failSchema(place, "minProperties", "more than are required: not supported beside properties");
    if (const int max = countOf(flat, "maxProperties", Grammar::kUnbounded, place);
        max < static_cast<int>(properties.size()) || (more && max < Grammar::kUnbounded))
        failSchema(place, "maxProperties", "not supported beside properties");

    // Two lines of nodes: in front of the first member that is written, and behind one.
    Grammar& grammar = rules_.grammar();
    int first = rules_.optionalSpace(grammar.byte(from, '{')), behind = -1;
    for (const Property& property : properties) {
        const int key = grammar.addNode();
        if (first >= 0) grammar.addSilent(first, key);
        if (behind >= 0) grammar.addSilent(rules_.comma(behind), key);
        const int at = rules_.colon(rules_.literalString(key, property.name));
        const std::string inside = fmt::format("{}/properties/{}", place, escaped(property.name));
        const int next = grammar.call(at, rule(property.schema, inside));
        if (property.required) {
            first = -1;
        } else if (behind >= 0) {
            grammar.addSilent(behind, next);
        }
        behind = next;
    }
    const int close = grammar.addNode();
    if (more) {
        std::vector<std::string> names;
        for (const Property& property : properties) names.push_back(property.name);
        const int member = grammar.addRule("member"), others = grammar.addRule("members");
        const int value = rule(*more, place + "/additionalProperties");
        const int key = rules_.otherString(grammar.start(member), names);
        grammar.accept(grammar.call(rules_.colon(key), value));
        grammar.accept(grammar.call(rules_.comma(grammar.start(others)), member));
        if (first >= 0) {
            const int next = grammar.call(first, member);
            grammar.addSilent(next, behind);
        }
        behind = grammar.call(behind, others, 0, Grammar::kUnbounded);
    }
    if (first >= 0) grammar.addSilent(first, close);
    grammar.addSilent(rules_.optionalSpace(behind), close);
    return grammar.byte(close, '}');
}

int SchemaCompiler::addMap(int from, const PythonValue& flat, const std::string& place) {
    const PythonValue *more = flat.find("additionalProperties"), *names = flat.find("propertyNames"),
                      *patterns = flat.find("patternProperties");
    const int min = countOf(flat, "minProperties", 0, place);
    int max = countOf(flat, "maxProperties", Grammar::kUnbounded, place);
    if (min > 1) failSchema(place, "minProperties", "more than 1 is not supported for names that are not declared");
    PythonValue key = schemaOf("type", [] {
        PythonValue string;
        string.type = Type::String;
        string.text = "string";
        return string;
    }());
    std::string valuePlace = place + "/additionalProperties";
    if (patterns) {
        if (!patterns->isObject() || patterns->members.size() != 1 || names || (more && !isFalse(more)))
            failSchema(place, "patternProperties", "supported only with one pattern and no other names");
        setKeyword(key, "pattern", [&] {
            PythonValue pattern;
            pattern.type = Type::String;
            pattern.text = patterns->members[0].name;
            return pattern;
        }());
        more = &patterns->members[0].value;
        valuePlace = place + "/patternProperties";
    } else if (names) {
        key = merger_.merge(key, merger_.flatten(*names, place + "/propertyNames"), place + "/propertyNames");
    }
    if (isFalse(more)) max = 0;
    if (min > max) return rules_.grammar().addNode();
    return rules_.map(from, rule(key, patterns ? valuePlace : place + "/propertyNames"), anyValueOr(more, valuePlace),
                      min, max);
}

}  // namespace dllama::grammar
