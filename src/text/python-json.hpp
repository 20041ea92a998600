#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dllama {

/// A JSON value that prints as Python would print it, since the chat templates were written for Python: keys in order,
/// the last value of a repeated key at the place of the first, integers of any size, floats as repr() writes them.
struct PythonValue {
    struct Member;
    enum class Type { Null, Boolean, Number, String, List, Object };

    Type type = Type::Null;
    bool boolean = false;
    std::string text;                ///< String: its value; Number: as Python prints it
    std::vector<PythonValue> items;  ///< List
    std::vector<Member> members;     ///< Object

    bool isString() const { return type == Type::String; }
    bool isObject() const { return type == Type::Object; }
    bool isContainer() const { return type == Type::List || type == Type::Object; }
    /// The member of that name; null if there is none or this is no object.
    const PythonValue* find(std::string_view key) const;
    /// bool(value): false for null, false, zero, "" and what is empty.
    bool isTrue() const;
};

struct PythonValue::Member {
    std::string name;
    PythonValue value;
};

/// Throws ConfigError if `text` is not JSON; `what` names it in the message. Nesting is limited to 256 levels.
PythonValue parseJson(std::string_view text, std::string_view what);

/// json.dumps(value, ensure_ascii=False): ", " and ": " between; with indent >= 0 one member a line.
std::string toPythonJson(const PythonValue& value, int indent = -1);

/// str(value): a text is itself, True, None, and lists and objects with the repr() of what they hold.
std::string toPythonText(const PythonValue& value);

}  // namespace dllama
