#include "text/python-json.hpp"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

using Type = PythonValue::Type;

constexpr size_t kMaxDepth = 256;

/// repr(float): the shortest digits that give the value back; with an exponent below 1e-4 and from 1e16 on.
std::string floatText(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    char buffer[64];
    const auto scientific = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
    const std::string_view text(buffer, static_cast<size_t>(scientific.ptr - buffer));
    const size_t mark = text.find('e');
    int exponent = 0;
    std::from_chars(text.data() + mark + (text[mark + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
    if (exponent < -4 || exponent >= 16) return std::string(text);
    const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
    std::string result(buffer, static_cast<size_t>(fixed.ptr - buffer));
    if (result.find('.') == std::string::npos) result += ".0";
    return result;
}

/// Builds a PythonValue from nlohmann's events.
class Builder : public nlohmann::json_sax<nlohmann::json> {
  public:
    PythonValue root;

    bool null() override { return add({}); }
    bool boolean(bool value) override {
        PythonValue result;
        result.type = Type::Boolean;
        result.boolean = value;
        return add(std::move(result));
    }
    bool number_integer(number_integer_t value) override { return addNumber(std::to_string(value)); }
    bool number_unsigned(number_unsigned_t value) override { return addNumber(std::to_string(value)); }
    bool number_float(number_float_t value, const string_t& source) override {
        // Integers beyond 64 bits arrive here too; Python keeps their digits.
        const bool isFloat = source.find_first_of(".eE") != std::string::npos;
        return addNumber(isFloat ? floatText(value) : source);
    }
    bool string(string_t& value) override {
        PythonValue result;
        result.type = Type::String;
        result.text = std::move(value);
        return add(std::move(result));
    }
    bool binary(binary_t&) override { return false; }
    bool start_object(size_t) override { return open(Type::Object); }
    bool start_array(size_t) override { return open(Type::List); }
    bool key(string_t& name) override {
        keys_.back() = std::move(name);
        return true;
    }
    bool end_object() override {
        mergeRepeatedKeys(*open_.back());
        return close();
    }
    bool end_array() override { return close(); }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

  private:
    bool addNumber(std::string text) {
        PythonValue result;
        result.type = Type::Number;
        result.text = std::move(text);
        return add(std::move(result));
    }
    bool add(PythonValue value) {
        place(std::move(value));
        return true;
    }
    PythonValue& place(PythonValue value) {
        if (open_.empty()) return root = std::move(value);
        PythonValue& parent = *open_.back();
        if (parent.type == Type::List) return parent.items.emplace_back(std::move(value));
        parent.members.push_back({std::move(keys_.back()), std::move(value)});
        return parent.members.back().value;
    }
    bool open(Type type) {
        if (open_.size() == kMaxDepth) return false;
        PythonValue value;
        value.type = type;
        // Only the innermost container grows, so that pointers to the ones around it stay valid.
        open_.push_back(&place(std::move(value)));
        keys_.emplace_back();
        return true;
    }
    bool close() {
        open_.pop_back();
        keys_.pop_back();
        return true;
    }
    static void mergeRepeatedKeys(PythonValue& object) {
        std::unordered_map<std::string_view, size_t> placeOf;
        placeOf.reserve(object.members.size());
        bool repeated = false;
        for (size_t i = 0; i < object.members.size(); i++) {
            const auto [found, isNew] = placeOf.emplace(object.members[i].name, i);
            if (isNew) continue;
            object.members[found->second].value = object.members[i].value;
            repeated = true;
        }
        if (!repeated) return;
        std::vector<PythonValue::Member> kept;
        for (size_t i = 0; i < object.members.size(); i++) {
            if (placeOf.at(object.members[i].name) == i) kept.push_back(object.members[i]);
        }
        object.members = std::move(kept);
    }

    std::vector<PythonValue*> open_;
    std::vector<std::string> keys_;
};

void appendJsonString(std::string_view text, std::string& out) {
    out += '"';
    for (char c : text) {
        switch (c) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            case '\f':
                out += "\\f";
                break;
            case '\b':
                out += "\\b";
                break;
            default:
                if (static_cast<unsigned char>(c) < 0x20) {
                    out += fmt::format("\\u{:04x}", static_cast<int>(c));
                } else {
                    out += c;
                }
        }
    }
    out += '"';
}

void appendBreak(int indent, int depth, std::string& out) {
    out += '\n';
    out.append(static_cast<size_t>(indent * depth), ' ');
}

void appendJson(const PythonValue& value, int indent, int depth, std::string& out) {
    const auto list = [&](char open, char close, size_t n, const auto& element) {
        out += open;
        for (size_t i = 0; i < n; i++) {
            if (i > 0) out += indent >= 0 ? "," : ", ";
            if (indent >= 0) appendBreak(indent, depth + 1, out);
            element(i);
        }
        if (indent >= 0 && n > 0) appendBreak(indent, depth, out);
        out += close;
    };
    switch (value.type) {
        case Type::Null:
            out += "null";
            break;
        case Type::Boolean:
            out += value.boolean ? "true" : "false";
            break;
        case Type::Number:
            out += value.text;
            break;
        case Type::String:
            appendJsonString(value.text, out);
            break;
        case Type::List:
            list('[', ']', value.items.size(), [&](size_t i) { appendJson(value.items[i], indent, depth + 1, out); });
            break;
        case Type::Object:
            list('{', '}', value.members.size(), [&](size_t i) {
                appendJsonString(value.members[i].name, out);
                out += ": ";
                appendJson(value.members[i].value, indent, depth + 1, out);
            });
            break;
    }
}

/// repr(str). Characters that Python calls unprintable are escaped as far as they are ASCII or C1 controls.
void appendRepr(std::string_view text, std::string& out) {
    const bool doubleQuotes = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
    const char quote = doubleQuotes ? '"' : '\'';
    out += quote;
    while (!text.empty()) {
        const Utf8Step step = utf8Step(text);
        const uint32_t c = step.codePoint;
        if (c == static_cast<uint32_t>(quote) || c == '\\') {
            out += '\\';
            out += static_cast<char>(c);
        } else if (c == '\n') {
            out += "\\n";
        } else if (c == '\r') {
            out += "\\r";
        } else if (c == '\t') {
            out += "\\t";
        } else if (c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD) {
            out += fmt::format("\\x{:02x}", c);
        } else {
            out += text.substr(0, step.length);
        }
        text.remove_prefix(step.length);
    }
    out += quote;
}

void appendPython(const PythonValue& value, std::string& out) {
    switch (value.type) {
        case Type::Null:
            out += "None";
            break;
        case Type::Boolean:
            out += value.boolean ? "True" : "False";
            break;
        case Type::Number:
            out += value.text;
            break;
        case Type::String:
            appendRepr(value.text, out);
            break;
        case Type::List:
            out += '[';
            for (size_t i = 0; i < value.items.size(); i++) {
                if (i > 0) out += ", ";
                appendPython(value.items[i], out);
            }
            out += ']';
            break;
        case Type::Object:
            out += '{';
            for (size_t i = 0; i < value.members.size(); i++) {
                if (i > 0) out += ", ";
                appendRepr(value.members[i].name, out);
                out += ": ";
                appendPython(value.members[i].value, out);
            }
            out += '}';
            break;
    }
}

}  // namespace

const PythonValue* PythonValue::find(std::string_view key) const {
    for (const auto& [name, value] : members) {
        if (name == key) return &value;
    }
    return nullptr;
}

bool PythonValue::isTrue() const {
    switch (type) {
        case Type::Null:
            return false;
        case Type::Boolean:
            return boolean;
        case Type::Number:
            return text.find_first_of("123456789IN") != std::string::npos;
        case Type::String:
            return !text.empty();
        case Type::List:
            return !items.empty();
        case Type::Object:
            return !members.empty();
    }
    return false;
}

PythonValue parseJson(std::string_view text, std::string_view what) {
    Builder builder;
    if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) throw ConfigError("{} is not valid JSON", what);
    return std::move(builder.root);
}

std::string toPythonJson(const PythonValue& value, int indent) {
    std::string out;
    appendJson(value, indent, 0, out);
    return out;
}

std::string toPythonText(const PythonValue& value) {
    if (value.isString()) return value.text;
    std::string out;
    appendPython(value, out);
    return out;
}

}  // namespace dllama
