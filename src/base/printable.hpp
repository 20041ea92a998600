#pragma once

#include <string>
#include <string_view>

namespace dllama {

/// Foreign words (a name in a file, a peer's message) cut and cleaned to fit into one line of a terminal or a log: what
/// would steer the terminal, turn the direction of writing or is not UTF-8 becomes "?". At most `limit` bytes.
std::string printable(std::string_view text, size_t limit = 400);

/// For a whole message of ours that may quote foreign words: the same, but its own line feeds stay.
std::string printableLines(std::string_view text);

}  // namespace dllama
