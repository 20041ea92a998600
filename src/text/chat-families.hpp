#pragma once

#include <span>
#include <string_view>

#include "text/chat-calls.hpp"
#include "text/chat-format.hpp"

namespace dllama::chat {

/// What there is to know of a format: one row of the table in chat-families.cpp.
struct Family {
    ChatFormat format;
    std::string_view name;  ///< in `.t` files and on the command line
    RenderedChat (*render)(ChatFormat, const ChatRequest&);
    /// The markers after which a model of the family has said what it had to say.
    std::span<const std::string_view> stops;
    CallStyle calls = CallStyle::None;
    /// Where thoughts of an answer begin and end; empty: the family has none.
    std::string_view thinkOpen = {}, thinkClose = {};
    bool joinsParts = false;            ///< text parts of a message follow each other without a line feed
    bool beginsWithWhiteSpace = false;  ///< answers begin with white space of the template
};

std::span<const Family> families();
const Family& familyOf(ChatFormat format);
/// By name or by one of the other names in use; null for an unknown one.
const Family* findFamily(std::string_view name);

}  // namespace dllama::chat
