#include "api/json-fields.hpp"

#include <charconv>
#include <cmath>

#include "api/api-error.hpp"
#include "api/json-output.hpp"
#include "base/json.hpp"

namespace dllama::api {

namespace {

using Type = PythonValue::Type;

std::string rangeText(double low, double high) {
    return fmt::format("{} to {}", low, high);
}

/// The number of a Number; nothing if it does not fit into a double.
std::optional<double> doubleOf(const PythonValue& value) {
    double number = 0.0;
    const char* end = value.text.data() + value.text.size();
    const auto [stop, error] = std::from_chars(value.text.data(), end, number);
    if (error != std::errc() || stop != end || !std::isfinite(number)) return std::nullopt;
    return number;
}

}  // namespace

PythonValue parseBody(std::string_view body) {
    const JsonFault fault = checkJson(body, {kMaxBodyDepth, kMaxBodyValues});
    switch (fault.kind) {
        case JsonFault::Kind::None:
            break;
        case JsonFault::Kind::NoJson:
            throw invalidRequest("", "the body is not valid JSON: fault at byte {} of {}", fault.at, body.size());
        case JsonFault::Kind::TooDeep:
            throw invalidRequest("", "the body is JSON nested deeper than {} levels", kMaxBodyDepth);
        case JsonFault::Kind::TooManyValues:
            throw invalidRequest("", "the body is JSON of more than {} values", kMaxBodyValues);
    }
    PythonValue value = parseJson(body, "the body");
    if (!value.isObject()) throw invalidRequest("", "the body is {}, must be a JSON object", shown(value));
    return value;
}

std::string shown(const PythonValue& value) {
    constexpr size_t kShownDigits = 40;
    switch (value.type) {
        case Type::Null:
            return "null";
        case Type::Boolean:
            return value.boolean ? "true" : "false";
        case Type::Number:
            return value.text.size() <= kShownDigits ? value.text : value.text.substr(0, kShownDigits) + "...";
        case Type::String:
            return quotedText(value.text);
        case Type::List:
            return fmt::format("a list of {}", value.items.size());
        case Type::Object:
            return "an object";
    }
    return "";
}

const std::string& textOf(const PythonValue& value, std::string_view path) {
    if (!value.isString()) throw invalidRequest(std::string(path), "{} is {}, must be a text", path, shown(value));
    return value.text;
}

double numberOf(const PythonValue& value, std::string_view path, double low, double high) {
    const std::optional<double> number = value.type == Type::Number ? doubleOf(value) : std::nullopt;
    if (!number || *number < low || *number > high)
        throw invalidRequest(std::string(path), "{} is {}, must be a number from {}", path, shown(value),
                             rangeText(low, high));
    return *number;
}

int64_t integerOf(const PythonValue& value, std::string_view path, int64_t low, int64_t high) {
    const auto refuse = [&] {
        return invalidRequest(std::string(path), "{} is {}, must be a whole number from {} to {}", path, shown(value),
                              low, high);
    };
    if (value.type != Type::Number) throw refuse();
    int64_t number = 0;
    const char* end = value.text.data() + value.text.size();
    const auto [stop, error] = std::from_chars(value.text.data(), end, number);
    if (error != std::errc() || stop != end) {
        // Some clients know floats only. Above 2^53 not every whole number is one.
        const std::optional<double> real = doubleOf(value);
        if (!real || *real != std::floor(*real) || std::fabs(*real) > 9007199254740992.0) throw refuse();
        number = static_cast<int64_t>(*real);
    }
    if (number < low || number > high) throw refuse();
    return number;
}

std::string Items::pathOf(size_t index) const {
    return fmt::format("{}[{}]", path, index);
}

Fields::Fields(const PythonValue& object, std::string path) : object_(&object), path_(std::move(path)) {
    if (!object.isObject()) throw invalidRequest(path_, "{} is {}, must be an object", path_, shown(object));
}

const PythonValue* Fields::find(std::string_view key) const {
    const PythonValue* value = object_->find(key);
    return value && value->type != Type::Null ? value : nullptr;
}

std::string Fields::pathOf(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

std::optional<std::string> Fields::text(std::string_view key) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    return textOf(*value, pathOf(key));
}

std::optional<bool> Fields::flag(std::string_view key) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    if (value->type != Type::Boolean)
        throw invalidRequest(pathOf(key), "{} is {}, must be true or false", pathOf(key), shown(*value));
    return value->boolean;
}

std::optional<double> Fields::number(std::string_view key, double low, double high) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    return numberOf(*value, pathOf(key), low, high);
}

std::optional<int64_t> Fields::integer(std::string_view key, int64_t low, int64_t high) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    return integerOf(*value, pathOf(key), low, high);
}

std::optional<Items> Fields::list(std::string_view key) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    if (value->type != Type::List)
        throw invalidRequest(pathOf(key), "{} is {}, must be a list", pathOf(key), shown(*value));
    return Items{pathOf(key), &value->items};
}

std::optional<Fields> Fields::object(std::string_view key) const {
    const PythonValue* value = find(key);
    if (!value) return std::nullopt;
    return Fields(*value, pathOf(key));
}

std::string Fields::requiredText(std::string_view key) const {
    if (!has(key)) throw invalidRequest(pathOf(key), "{} is missing", pathOf(key));
    return *text(key);
}

Items Fields::requiredList(std::string_view key) const {
    if (!has(key)) throw invalidRequest(pathOf(key), "{} is missing", pathOf(key));
    return *list(key);
}

}  // namespace dllama::api
