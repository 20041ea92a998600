#include "text/chat-format.hpp"

#include <algorithm>

#include "text/chat-families.hpp"
#include "text/chat-writer.hpp"

namespace dllama {
namespace {

using chat::Family;
using chat::familyOf;

void checkRequest(const ChatRequest& request) {
    if (request.messages.empty()) throw ConfigError("the list of messages is empty");
    constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
    for (const ChatMessage& message : request.messages) {
        if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
            throw ConfigError("unknown role \"{}\": a message is from system, user, assistant or tool", message.role);
        }
    }
}

}  // namespace

std::string RenderedChat::text() const {
    std::string all;
    for (const TextSegment& segment : segments) all += segment.text;
    return all;
}

ChatFormat chatFormatByName(std::string_view name) {
    if (const Family* found = chat::findFamily(name)) return found->format;
    std::string known;
    for (const Family& one : chat::families()) known += fmt::format("{}{}", known.empty() ? "" : ", ", one.name);
    throw ConfigError("unknown chat format \"{}\", known are {}", name, known);
}

std::string_view chatFormatName(ChatFormat format) {
    return familyOf(format).name;
}

RenderedChat renderChat(ChatFormat format, const ChatRequest& request) {
    checkRequest(request);
    return familyOf(format).render(format, request);
}

std::string joinContentParts(ChatFormat format, std::string_view role, std::span<const std::string> parts) {
    const bool adjoin = familyOf(format).joinsParts && role != "tool";
    std::string joined;
    for (size_t i = 0; i < parts.size(); i++) {
        if (i > 0 && !adjoin) joined += '\n';
        joined += parts[i];
    }
    return joined;
}

ChatStops chatStops(ChatFormat format, const Tokenizer& tokenizer) {
    ChatStops stops;
    for (std::string_view marker : familyOf(format).stops) {
        if (const auto id = tokenizer.specialId(marker)) {
            stops.ids.push_back(*id);
        } else {
            stops.texts.emplace_back(marker);
        }
    }
    return stops;
}

bool answersBeginWithWhiteSpace(ChatFormat format) {
    return familyOf(format).beginsWithWhiteSpace;
}

}  // namespace dllama
