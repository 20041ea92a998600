#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "tensor/blocks.hpp"

/// The engine's rounding for the converter's tests: float32 from stdin, the values as argv[1] (F32 ... Q40) to stdout.
int main(int argc, char** argv) {
    using dllama::DType;
    const std::map<std::string, DType> types = {
        {"F32", DType::F32}, {"F16", DType::F16}, {"BF16", DType::BF16}, {"Q80", DType::Q80}, {"Q40", DType::Q40}};
    if (argc != 2 || !types.contains(argv[1])) return 1;
    const DType type = types.at(argv[1]);
    const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
    std::vector<float> values(bytes.size() / sizeof(float));
    bytes.copy(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
    const auto n = static_cast<int64_t>(values.size());
    std::string out(dllama::storedBytes(type, n), '\0');
    dllama::quantize(type, values.data(), out.data(), n);
    std::cout.write(out.data(), static_cast<std::streamsize>(out.size()));
    return std::cout.good() ? 0 : 1;
}
