#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "tensor/blocks.hpp"

/// The engine's rounding for the converter's tests: float32 from stdin, the values as argv[1] (F32 ... Q40) to stdout.
int main(int argc, char** argv) {
    if (argc != 2 || !dllama::dtypeFromName(argv[1])) return 1;
    const dllama::DType type = *dllama::dtypeFromName(argv[1]);
    const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
    std::vector<float> values(bytes.size() / sizeof(float));
    bytes.copy(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
    const auto n = static_cast<int64_t>(values.size());
    std::string out(dllama::storedBytes(type, n), '\0');
    dllama::quantize(type, values.data(), out.data(), n);
    std::cout.write(out.data(), static_cast<std::streamsize>(out.size()));
    return std::cout.good() ? 0 : 1;
}
