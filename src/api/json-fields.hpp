#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/python-json.hpp"

/// How the readers look at a request's JSON. Everything here throws ApiError, naming the field, its value and what it
/// may be.
namespace dllama::api {

/// Deeper than any request of a client; a schema of a function takes two or three levels for each of its own.
constexpr int kMaxBodyDepth = 64;
/// A value takes about 90 bytes in memory, however short it is in the text.
constexpr size_t kMaxBodyValues = 1'000'000;

/// The JSON object that a request's body is. Depth and number of values are looked at before anything is built.
PythonValue parseBody(std::string_view body);

/// The value for a message: texts and numbers shortened, of lists and objects only what they are.
std::string shown(const PythonValue& value);

/// A list of values, each with its path.
struct Items {
    std::string path;
    const std::vector<PythonValue>* values = nullptr;

    size_t size() const { return values ? values->size() : 0; }
    const PythonValue& operator[](size_t index) const { return (*values)[index]; }
    std::string pathOf(size_t index) const;
};

/// The members of an object. A member that is null counts as not given. The object must outlive this.
class Fields {
  public:
    /// `path` names the object in messages, as tools[0].function; empty: the body.
    explicit Fields(const PythonValue& object, std::string path = {});

    const PythonValue* find(std::string_view key) const;
    bool has(std::string_view key) const { return find(key) != nullptr; }
    std::string pathOf(std::string_view key) const;

    std::optional<std::string> text(std::string_view key) const;
    std::optional<bool> flag(std::string_view key) const;
    std::optional<double> number(std::string_view key, double low, double high) const;
    /// A float with a whole value counts as a whole number.
    std::optional<int64_t> integer(std::string_view key, int64_t low, int64_t high) const;
    std::optional<Items> list(std::string_view key) const;
    std::optional<Fields> object(std::string_view key) const;

    /// The same for fields that must be given.
    std::string requiredText(std::string_view key) const;
    Items requiredList(std::string_view key) const;

  private:
    const PythonValue* object_;
    std::string path_;
};

/// A whole number in the range; `path` names it.
int64_t integerOf(const PythonValue& value, std::string_view path, int64_t low, int64_t high);
double numberOf(const PythonValue& value, std::string_view path, double low, double high);
const std::string& textOf(const PythonValue& value, std::string_view path);

}  // namespace dllama::api
