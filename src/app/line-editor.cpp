#include "app/line-editor.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>

#ifdef DLLAMA_HAS_LIBEDIT
#include <histedit.h>

#include <clocale>

#include "text/utf8.hpp"
#endif

namespace dllama {

#ifdef DLLAMA_HAS_LIBEDIT

namespace {

constexpr const char* kPasteOn = "\033[?2004h";
constexpr const char* kPasteOff = "\033[?2004l";

/// What an EditLine's callbacks can reach.
struct Input {
    const wchar_t* prompt = L"";
    Interrupt* interrupt = nullptr;
    std::string bytes;   // read, not yet taken
    int typedAhead = 0;  // bytes not yet read that came before the editor took the terminal over
};

Input& inputOf(EditLine* editor) {
    void* data = nullptr;
    el_wget(editor, EL_CLIENTDATA, &data);
    return *static_cast<Input*>(data);
}

/// libedit's own reading would drop bytes that the locale does not know, and a first Ctrl-C.
int readCharacter(EditLine* editor, wchar_t* out) {
    Input& input = inputOf(editor);
    for (;;) {
        if (!input.bytes.empty()) {
            const Utf8Step step = utf8Step(input.bytes);
            if (!step.cutOff) {
                *out = static_cast<wchar_t>(step.valid ? step.codePoint : static_cast<unsigned char>(input.bytes[0]));
                input.bytes.erase(0, step.valid ? step.length : 1);
                return 1;
            }
        }
        if (!input.interrupt->waitForInput(STDIN_FILENO)) return -1;
        char byte = 0;
        const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
        if (n == 1) {
            // The kernel keeps a Ctrl-D of before as a NUL, which libedit would take for "insert the next key as it
            // is".
            const bool ahead = input.typedAhead > 0 && input.typedAhead-- > 0;
            if (byte != '\0') {
                input.bytes += byte;
            } else if (ahead) {
                input.bytes += '\x04';
            }
        } else if (n == 0) {
            return 0;
        } else if (errno != EINTR) {
            return -1;
        }
    }
}

wchar_t* promptOf(EditLine* editor) {
    return const_cast<wchar_t*>(inputOf(editor).prompt);
}

/// Takes what a terminal sends between its marks of a paste into the line, line feeds included.
unsigned char insertPaste(EditLine* editor, wint_t) {
    constexpr std::wstring_view kEnd = L"\033[201~";
    std::wstring text;
    wchar_t c = 0;
    while (!text.ends_with(kEnd)) {
        if (el_wgetc(editor, &c) != 1) return CC_EOF;
        if (c == L'\n' && text.ends_with(L'\r')) text.pop_back();
        text += c;
    }
    text.resize(text.size() - kEnd.size());
    for (wchar_t& one : text) {
        if (one == L'\r') one = L'\n';
    }
    while (text.ends_with(L'\n')) text.pop_back();
    el_winsertstr(editor, text.c_str());
    return CC_REFRESH;
}

std::string toUtf8(std::wstring_view text) {
    std::string bytes;
    for (const wchar_t wide : text) {
        const auto c = static_cast<uint32_t>(wide);
        const auto tail = [&](int shift) { bytes += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
        if (c < 0x80) {
            bytes += static_cast<char>(c);
        } else if (c < 0x800) {
            bytes += static_cast<char>(0xC0 | c >> 6);
            tail(0);
        } else if (c < 0x10000) {
            bytes += static_cast<char>(0xE0 | c >> 12);
            tail(6), tail(0);
        } else {
            bytes += static_cast<char>(0xF0 | c >> 18);
            tail(12), tail(6), tail(0);
        }
    }
    return bytes;
}

}  // namespace

struct LineEditor::Terminal {
    explicit Terminal(Interrupt& interrupt) {
        // What the program writes is UTF-8 whatever the user's locale: letters must be letters to the editor too.
        if (!std::setlocale(LC_CTYPE, "C.UTF-8")) std::setlocale(LC_CTYPE, "");
        input.interrupt = &interrupt;
        editor = el_init("dllama", stdin, stdout, stderr);
        history = history_winit();
        HistEventW event;
        history_w(history, &event, H_SETSIZE, 1000);
        el_wset(editor, EL_CLIENTDATA, &input);
        el_wset(editor, EL_PROMPT, promptOf);
        el_wset(editor, EL_EDITOR, L"emacs");
        el_wset(editor, EL_HIST, history_w, history);
        el_wset(editor, EL_GETCFN, readCharacter);
        el_wset(editor, EL_ADDFN, L"insert-paste", L"Insert pasted text", insertPaste);
        el_wset(editor, EL_BIND, L"\033[200~", L"insert-paste", nullptr);
    }
    ~Terminal() {
        history_wend(history);
        el_end(editor);
    }

    Input input;
    EditLine* editor = nullptr;
    HistoryW* history = nullptr;
};

std::optional<std::string> LineEditor::read(const char* prompt) {
    if (!terminal_) return readPlain(prompt);
    // What stands before the last line of a prompt is none of the editor's.
    const std::string_view whole = prompt;
    const size_t lastLine = whole.rfind('\n') + 1;
    std::fwrite(prompt, 1, lastLine, stdout);
    const std::wstring own(whole.begin() + static_cast<std::ptrdiff_t>(lastLine), whole.end());
    terminal_->input.prompt = own.c_str();
    for (;;) {
        // Before the prompt: a key that is pressed when it shows is a key of the editor's.
        el_wset(terminal_->editor, EL_PREP_TERM, 1);
        if (ioctl(STDIN_FILENO, FIONREAD, &terminal_->input.typedAhead) != 0) terminal_->input.typedAhead = 0;
        fmt::print("{}", kPasteOn);
        std::fflush(stdout);
        int n = 0;
        const wchar_t* line = el_wgets(terminal_->editor, &n);
        fmt::print("{}", kPasteOff);
        std::fflush(stdout);
        if (line && n > 0) {
            std::wstring_view text(line, static_cast<size_t>(n));
            while (text.ends_with(L'\n') || text.ends_with(L'\r')) text.remove_suffix(1);
            HistEventW event;
            if (!text.empty()) history_w(terminal_->history, &event, H_ENTER, std::wstring(text).c_str());
            return toUtf8(text);
        }
        if (!interrupt_.raised()) return std::nullopt;
        fmt::print("\n(Ctrl-D ends the chat)\n");
        interrupt_.clear();
        el_wset(terminal_->editor, EL_REFRESH);
    }
}

LineEditor::LineEditor(Interrupt& interrupt) : interrupt_(interrupt) {
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) terminal_ = std::make_unique<Terminal>(interrupt);
}

#else

struct LineEditor::Terminal {};

LineEditor::LineEditor(Interrupt& interrupt) : interrupt_(interrupt) {}

std::optional<std::string> LineEditor::read(const char* prompt) {
    return readPlain(prompt);
}

#endif

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::readPlain(const char* prompt) {
    constexpr size_t kTerminalLine = 4095;  // a terminal drops what is longer and says nothing
    for (;;) {
        fmt::print("{}", prompt);
        std::fflush(stdout);
        std::string line;
        // A terminal gives one line at a time: nothing is left in the buffer of std::cin.
        const bool interrupted = isatty(STDIN_FILENO) && !interrupt_.waitForInput(STDIN_FILENO);
        if (!interrupted && std::getline(std::cin, line)) {
            if (line.ends_with('\r')) line.pop_back();
            if (line.size() < kTerminalLine || !isatty(STDIN_FILENO)) return line;
            fmt::print("(this terminal passes {} bytes of a line: the question is not sent)\n", kTerminalLine);
            continue;
        }
        if (!interrupt_.raised()) return std::nullopt;
        fmt::print("\n(Ctrl-D ends the chat)\n");
        interrupt_.clear();
        std::cin.clear();
    }
}

}  // namespace dllama
