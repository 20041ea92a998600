#include <algorithm>
#include <optional>

#include "base/errors.hpp"
#include "text/chat-calls.hpp"
#include "text/chat-writer.hpp"
#include "text/utf8.hpp"

namespace dllama::chat {
namespace {

using Type = PythonValue::Type;
using std::string_view;

PythonValue textValue(string_view text) {
    PythonValue value;
    value.type = Type::String;
    value.text = text;
    return value;
}

PythonValue booleanValue(bool is) {
    PythonValue value;
    value.type = Type::Boolean;
    value.boolean = is;
    return value;
}

bool equalsAnyCase(string_view text, string_view lower) {
    return std::equal(text.begin(), text.end(), lower.begin(), lower.end(), [](char a, char b) {
        return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 'a' - 'A') : a) == b;
    });
}

std::optional<PythonValue> tryJson(string_view text) {
    try {
        return parseJson(text, "an argument");
    } catch (const ConfigError&) {
        return std::nullopt;
    }
}

/// A Python literal written as JSON: single quotes become double ones, True, False and None their names in JSON.
std::string jsonOfPython(string_view text) {
    std::string out;
    char quote = 0;
    for (size_t i = 0; i < text.size(); i++) {
        const char c = text[i];
        const auto word = [&](string_view python, string_view json) {
            if (!text.substr(i).starts_with(python)) return false;
            out += json;
            i += python.size() - 1;
            return true;
        };
        if (quote == 0) {
            if (c == '\'' || c == '"') {
                quote = c;
                out += '"';
            } else if (!word("True", "true") && !word("False", "false") && !word("None", "null")) {
                out += c;
            }
        } else if (c == '\\' && i + 1 < text.size()) {
            if (text[++i] != '\'') out += c;
            out += text[i];
        } else if (c == quote) {
            quote = 0;
            out += '"';
        } else {
            if (c == '"') out += '\\';
            out += c;
        }
    }
    return out;
}

std::optional<PythonValue> tryJsonOrPython(string_view text) {
    if (auto value = tryJson(text)) return value;
    return tryJson(jsonOfPython(text));
}

/// The schema of a parameter; null for an unknown tool or parameter.
const PythonValue* schemaOf(const std::vector<PythonValue>& tools, string_view function, string_view parameter) {
    for (const PythonValue& tool : tools) {
        const PythonValue& inner = functionOf(tool);
        const PythonValue* name = inner.find("name");
        if (!name || !name->isString() || name->text != function) continue;
        const PythonValue* parameters = inner.find("parameters");
        const PythonValue* properties = parameters ? parameters->find("properties") : nullptr;
        return properties ? properties->find(parameter) : nullptr;
    }
    return nullptr;
}

}  // namespace

PythonValue glmArgument(const std::vector<PythonValue>& tools, string_view function, string_view name,
                        string_view text) {
    const PythonValue* schema = schemaOf(tools, function, name);
    const PythonValue* type = schema ? schema->find("type") : nullptr;
    if (type && type->isString() && type->text == "string") return textValue(text);
    if (auto value = tryJsonOrPython(stripUnicode(text))) return *value;
    return textValue(text);
}

PythonValue qwenArgument(const std::vector<PythonValue>& tools, string_view function, string_view name,
                         string_view text) {
    const PythonValue* schema = schemaOf(tools, function, name);
    const PythonValue* given = schema ? schema->find("type") : nullptr;
    if (!given) return textValue(text);
    std::string type;
    bool plain = true;
    if (given->isString()) {
        type = given->text;
    } else {
        plain = false;
        for (const PythonValue& one : given->items) {
            if (type.empty() && one.isString() && one.text != "null") type = one.text;
        }
    }
    if (plain && type == "string") return textValue(text);
    const string_view trimmed = stripUnicode(text);
    if (equalsAnyCase(trimmed, "null")) return {};
    const auto is = [&](string_view start) { return type.starts_with(start); };
    if (is("int") || is("num") || is("float")) {
        const auto value = tryJson(trimmed);
        const bool whole = value && value->text.find_first_of(".eE") == std::string::npos;
        if (value && value->type == Type::Number && (whole || !is("int"))) return *value;
    } else if (is("bool")) {
        if (equalsAnyCase(trimmed, "true") || equalsAnyCase(trimmed, "false"))
            return booleanValue(equalsAnyCase(trimmed, "true"));
    } else if (type == "object" || type == "array") {
        if (auto value = tryJsonOrPython(trimmed); value && value->isContainer()) return *value;
    }
    return textValue(text);
}

}  // namespace dllama::chat
