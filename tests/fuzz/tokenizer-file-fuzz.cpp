#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/errors.hpp"
#include "format/tokenizer-file.hpp"
#include "text/tokenizer.hpp"

/// libFuzzer: any bytes either load as a tokenizer file that encodes and decodes a text, or are refused by an Error.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const dllama::Tokenizer tokenizer(dllama::parseTokenizerFile(std::as_bytes(std::span(data, size)), "fuzz.t"));
        const std::string text = "<s>Hello,  w\xc3\xb6rld 123\n\t\xe6\xa8\xa1";
        tokenizer.decode(tokenizer.encode(text, dllama::SpecialTokens::Parse, true));
    } catch (const dllama::Error&) {
        return 0;
    }
    return 0;
}
