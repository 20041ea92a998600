#pragma once

#include <memory>
#include <optional>
#include <string>

#include "app/interrupt.hpp"

namespace dllama {

/// Reads questions: on a terminal with editing, history, any length and pasted text of several lines as one question;
/// from a pipe or file line by line. Line ends of either kind (LF, CRLF) end a line and are no part of it. Bytes that
/// are not UTF-8 are taken as Latin-1 on a terminal and left alone elsewhere.
class LineEditor {
  public:
    explicit LineEditor(Interrupt& interrupt);
    ~LineEditor();

    /// The next line; nothing at the end of the input (Ctrl-D). Ctrl-C begins the line anew.
    std::optional<std::string> read(const char* prompt);

  private:
    struct Terminal;
    std::optional<std::string> readPlain(const char* prompt);

    Interrupt& interrupt_;
    std::unique_ptr<Terminal> terminal_;  // null where nothing is to be edited
};

}  // namespace dllama
