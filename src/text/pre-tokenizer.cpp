#include "text/pre-tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <time.h>

#include <algorithm>
#include <new>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

std::string errorText(int code) {
    PCRE2_UCHAR text[256];
    pcre2_get_error_message(code, text, sizeof(text));
    return reinterpret_cast<const char*>(text);
}

/// `\s` and `\S` written as properties; every other escape stays.
std::string withWhiteSpaceProperty(std::string_view pattern) {
    std::string result;
    for (size_t i = 0; i < pattern.size(); i++) {
        if (pattern[i] != '\\' || i + 1 == pattern.size()) {
            result += pattern[i];
            continue;
        }
        const char escaped = pattern[++i];
        if (escaped == 's') {
            result += "\\p{White_Space}";
        } else if (escaped == 'S') {
            result += "\\P{White_Space}";
        } else {
            result += '\\';
            result += escaped;
        }
    }
    return result;
}

struct MatchDataDeleter {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextDeleter {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

// Patterns come with a tokenizer file, and some take a time that grows with the square of the text's length, or worse.
/// Begins of a match that one call tries, in bytes: the time is looked at between calls.
constexpr size_t kBeginsAtOnce = 64;
/// Matches between two looks at the time.
constexpr int kMatchesAtOnce = 256;
/// Of the processor's time: published patterns take less than a hundredth of it.
constexpr double kSeconds = 1.0, kSecondsPerByte = 4e-6;
/// Backtracks for one begin: published patterns go back over each byte of a run of blanks once or twice.
constexpr size_t kBacktracks = 65536, kBacktracksPerByte = 8;
constexpr uint32_t kHeapKilobytes = 256 * 1024;

/// The first begin of a character behind `at`.
size_t nextCharacter(std::string_view text, size_t at) {
    do at++;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80);
    return at;
}

double threadSeconds() {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

struct PreTokenizer::Pattern {
    explicit Pattern(const std::string& source) {
        const std::string text = withWhiteSpaceProperty(source);
        int error = 0;
        PCRE2_SIZE offset = 0;
        code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT, &error, &offset,
                             nullptr);
        if (!code) throw FormatError("the pattern {} is faulty: {}", source, errorText(error));
        // Without a just-in-time compiler for this machine the interpreter does the same work, slower.
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    }
    ~Pattern() { pcre2_code_free(code); }
    Pattern(const Pattern&) = delete;

    void split(std::string_view text, std::vector<std::string_view>& pieces) const;

    pcre2_code* code = nullptr;
};

void PreTokenizer::Pattern::split(std::string_view text, std::vector<std::string_view>& pieces) const {
    const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(pcre2_match_data_create(1, nullptr));
    const std::unique_ptr<pcre2_match_context, MatchContextDeleter> context(pcre2_match_context_create(nullptr));
    if (!data || !context) throw std::bad_alloc();
    const size_t backtracks = kBacktracks + kBacktracksPerByte * text.size();
    pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::min<size_t>(backtracks, UINT32_MAX)));
    pcre2_set_heap_limit(context.get(), kHeapKilobytes);
    const double limit = kSeconds + kSecondsPerByte * static_cast<double>(text.size());
    double begin = 0.0;  // when the first call of this text is over that may have taken long
    const auto checkTime = [&] {
        const double now = threadSeconds();
        if (begin == 0.0) begin = now;
        if (now - begin > limit)
            throw Error("the tokenizer's pattern takes more than {:.1f} s on this text of {} bytes", limit,
                        text.size());
    };
    size_t done = 0;  // everything before it is in pieces
    size_t from = 0;
    for (int nMatches = 1; from < text.size(); nMatches++) {
        pcre2_set_offset_limit(context.get(), from + kBeginsAtOnce);
        const auto match = [&](uint32_t options) {
            return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                               PCRE2_NO_UTF_CHECK | options, data.get(), context.get());
        };
        if (nMatches % kMatchesAtOnce == 0) checkTime();
        int result = match(0);
        // The compiled code has a small fixed stack; the interpreter's is on the heap.
        if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
        if (result == PCRE2_ERROR_NOMATCH) {
            checkTime();
            from = nextCharacter(text, from + kBeginsAtOnce);
            continue;
        }
        if (result < 0) throw Error("the tokenizer's pattern fails on this text: {}", errorText(result));
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
        if (range[1] <= range[0]) {  // an empty match cuts nothing
            from = range[0] < text.size() ? range[0] + utf8Step(text.substr(range[0])).length : text.size();
            continue;
        }
        if (range[0] > done) pieces.push_back(text.substr(done, range[0] - done));
        pieces.push_back(text.substr(range[0], range[1] - range[0]));
        done = from = range[1];
    }
    if (done < text.size()) pieces.push_back(text.substr(done));
}

PreTokenizer::PreTokenizer(const std::vector<std::string>& patterns) {
    for (const std::string& pattern : patterns) patterns_.push_back(std::make_unique<Pattern>(pattern));
}

PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;

std::vector<std::string_view> PreTokenizer::split(std::string_view text) const {
    std::vector<std::string_view> pieces;
    if (!text.empty()) pieces.push_back(text);
    for (const auto& pattern : patterns_) {
        std::vector<std::string_view> finer;
        for (std::string_view piece : pieces) pattern->split(piece, finer);
        pieces = std::move(finer);
    }
    return pieces;
}

}  // namespace dllama
