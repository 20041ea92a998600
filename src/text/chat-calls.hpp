#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/python-json.hpp"

/// How the families write calls, and how one is read out of generated text.
namespace dllama::chat {

/// How a family writes its calls of functions.
enum class CallStyle {
    None,
    GlmTags,    ///< <tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>, line feeds or not
    QwenTags,   ///< <tool_call><function=name><parameter=k>v</parameter></function></tool_call>
    Hermes,     ///< <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    Deepseek,   ///< between special tokens: type, name and a fenced JSON object
    LlamaJson,  ///< the answer begins with {"name": ..., "parameters": {...}}
    GlmLines,   ///< name, line feed, JSON object; parts of an answer divided by <|assistant|>
    Mistral,    ///< [TOOL_CALLS] and a JSON list
    Solar,      ///< between special tokens: id, name, JSON object
};

struct ParsedCall {
    std::string name;
    std::string arguments;  ///< JSON text of an object
};

/// What stands at the beginning of a text that begins with a mark.
struct CallRead {
    enum class Kind {
        More,   ///< cannot be told before more has come
        Calls,  ///< the first `length` bytes are these calls
        Text,   ///< the first `length` bytes are ordinary text
        Skip,   ///< the first `length` bytes are to be left out
    };
    Kind kind = Kind::More;
    size_t length = 0;
    std::vector<ParsedCall> calls = {};
};

/// The texts that a call, or what is left out around calls, can begin with.
std::vector<std::string_view> callMarks(CallStyle style);

/// Reads from `text`, which begins with one of the marks. With atEnd nothing more comes, and the answer is not More.
/// `tools` are the request's, for the types of arguments.
CallRead readCall(CallStyle style, std::string_view text, bool atEnd, const std::vector<PythonValue>& tools);

/// A name that a function can have: not empty, no white space, none of < > { } " '.
bool isFunctionName(std::string_view name);

/// Where the JSON value at the beginning of `text` ends.
struct JsonScan {
    enum class Kind { More, Whole, Faulty };
    Kind kind = Kind::More;
    size_t length = 0;
};
JsonScan scanJson(std::string_view text);

/// The JSON text as an object, if it is one.
bool parseObject(std::string_view text, PythonValue& object);

/// The call that an object {"name": ..., "arguments" or "parameters": ...} describes. False if it describes none.
bool callOfObject(const PythonValue& object, ParsedCall& call);

/// The value of an argument that a family writes as bare text, by the type in the tool's JSON schema. GLM reads as JSON
/// whatever is not plainly a string; Qwen goes by the type alone (what is unknown stays text).
PythonValue glmArgument(const std::vector<PythonValue>& tools, std::string_view function, std::string_view name,
                        std::string_view text);
PythonValue qwenArgument(const std::vector<PythonValue>& tools, std::string_view function, std::string_view name,
                         std::string_view text);

}  // namespace dllama::chat
