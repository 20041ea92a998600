#include <algorithm>
#include <cstdlib>

#include "app/conversation.hpp"
#include "app/interrupt.hpp"
#include "app/line-editor.hpp"
#include "app/options.hpp"
#include "app/session.hpp"
#include "base/errors.hpp"
#include "base/output-file.hpp"
#include "base/printable.hpp"

namespace dllama {

namespace {

constexpr const char* kHelp =
    "/clear             begin anew (the system prompt stays)\n"
    "/system TEXT       set the system prompt; without TEXT none\n"
    "/think on|off      let the model think first, or not\n"
    "/regen             another answer to the last question\n"
    "/stats             tokens and speed\n"
    "/save FILE         the conversation as JSON, as the API takes it\n"
    "Ctrl-C stops an answer, Ctrl-D ends the chat.\n";

/// What a session tells while it starts. Without --verbose only its warnings are printed.
class StartReport {
  public:
    explicit StartReport(bool verbose) : file_(verbose ? stdout : open_memstream(&text_, &size_)) {}
    ~StartReport() {
        if (file_ != stdout) std::fclose(file_);
        std::free(text_);
    }
    std::FILE* file() const { return file_; }
    void printWarnings() {
        std::fflush(file_);
        std::string_view rest = text_ ? std::string_view(text_, size_) : std::string_view();
        while (!rest.empty()) {
            const size_t end = std::min(rest.find('\n'), rest.size());
            if (rest.starts_with("⚠️")) fmt::print("{}\n", rest.substr(0, end));
            rest.remove_prefix(std::min(end + 1, rest.size()));
        }
    }

  private:
    char* text_ = nullptr;
    size_t size_ = 0;
    std::FILE* file_;
};

void printStart(const Conversation& chat, Session& session, bool verbose) {
    const ChatChoice& choice = chat.format();
    const std::string& name = session.arch().config.name;
    fmt::print("⭐ {}, {} MB of weights, {}, context {} tokens; /help lists the commands\n",
               name.empty() ? session.arch().config.architecture : name, session.file().bytes() >> 20,
               session.backend().name(), session.engine().maxPositions());
    if (choice.format == ChatFormat::None && !choice.reason.empty())
        fmt::print("⚠️ {}: the model continues your text (--chat-template names a format)\n", choice.reason);
    if (!verbose) return;
    fmt::print("⭐ Chat template: {}\n", chatFormatName(choice.format));
    for (int id : chat.stops().ids) fmt::print("🛑 Stop: {}\n", printable(session.tokenizer().piece(id)));
    for (const std::string& text : chat.stops().texts) fmt::print("🛑 Stop: {}\n", text);
}

/// A line that begins with a slash and a word in lower case, other than the switches that some models understand.
bool isCommand(const std::string& line) {
    const std::string word = line.substr(0, line.find(' '));
    if (word.size() < 2 || word[0] != '/' || word == "/nothink" || word == "/no_think") return false;
    return word.find_first_not_of("abcdefghijklmnopqrstuvwxyz", 1) == std::string::npos;
}

void runCommand(const std::string& line, Conversation& chat, Interrupt& interrupt) {
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "/help") {
        fmt::print("{}", kHelp);
    } else if (word == "/clear") {
        chat.clear();
        fmt::print("(a new conversation)\n");
    } else if (word == "/system") {
        chat.setSystem(rest);
        fmt::print("(the system prompt is {})\n", rest.empty() ? "empty" : "set");
    } else if (word == "/think" && (rest == "on" || rest == "off")) {
        chat.setThinking(rest == "on");
        fmt::print("(thinking is {})\n", rest);
    } else if (word == "/regen") {
        chat.answerAgain(interrupt);
    } else if (word == "/stats") {
        chat.printStats();
    } else if (word == "/save" && !rest.empty()) {
        try {
            chat.save(rest);
            fmt::print("(saved in {})\n", rest);
        } catch (const FormatError& error) {
            fmt::print("({})\n", error.what());
        }
    } else {
        fmt::print("(no such command: {}; /help lists them)\n", line);
    }
}

}  // namespace

int runChat(const ChatOptions& options) {
    checkSamplingParams(options.sampling);
    StartReport report(options.model.verbose);
    Session session(options.model, {.status = report.file()});
    report.printWarnings();
    Conversation chat(options, session);
    printStart(chat, session, options.model.verbose);
    Interrupt interrupt;
    LineEditor editor(interrupt);
    if (options.systemGiven) {
        chat.setSystem(options.system);
    } else {
        const std::optional<std::string> system = editor.read("💻 System prompt (optional)\n> ");
        if (!system) {
            session.finish();
            return 0;
        }
        chat.setSystem(*system);
    }
    while (const std::optional<std::string> question = editor.read("\n👱 User\n> ")) {
        if (question->empty()) continue;
        if (isCommand(*question)) {
            runCommand(*question, chat, interrupt);
            continue;
        }
        fmt::print("\n🤖 Assistant\n");
        flushOutput();
        chat.ask(*question, interrupt);
    }
    fmt::print("\n");
    session.finish();
    return 0;
}

}  // namespace dllama
