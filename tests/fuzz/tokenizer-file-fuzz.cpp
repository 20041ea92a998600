#include <cstddef>
#include <cstdint>
#include <span>

#include "base/errors.hpp"
#include "format/tokenizer-file.hpp"

/// libFuzzer: any bytes either load as a tokenizer file or are refused by a FormatError.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        dllama::parseTokenizerFile(std::as_bytes(std::span(data, size)), "fuzz.t");
    } catch (const dllama::FormatError&) {
        return 0;
    }
    return 0;
}
