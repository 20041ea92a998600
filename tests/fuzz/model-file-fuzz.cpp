// libFuzzer target: any bytes as a .m file are read whole or refused with an Error.

#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "arch/architecture.hpp"
#include "base/errors.hpp"
#include "format/model-file.hpp"
#include "format/model-layout.hpp"
#include "json-mutator.hpp"

namespace {

/// The bytes as they are, or (first byte odd) as the JSON document of a file whose header and hash are right: a fuzzer
/// does not find a hash.
std::string fileOf(const uint8_t* data, size_t size) {
    std::string bytes(reinterpret_cast<const char*>(data), size);
    if (size == 0 || data[0] % 2 == 0) return bytes;
    const std::string json = bytes.substr(1);
    const uint64_t hash = XXH3_64bits(json.data(), json.size());
    const auto length = static_cast<uint32_t>(json.size());
    const uint32_t header[] = {dllama::kModelMagic,
                               dllama::described::kHeaderBytes,
                               0,
                               1,
                               1,
                               static_cast<uint32_t>(dllama::kArchDescribed),
                               100,
                               length,
                               101,
                               static_cast<uint32_t>(hash),
                               102,
                               static_cast<uint32_t>(hash >> 32)};
    std::string file(reinterpret_cast<const char*>(header), sizeof header);
    file += json;
    file.resize(dllama::described::dataBegin(json.size()) + 4096);
    return file;
}

}  // namespace

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t maxSize);

/// The description as JSON, everything else as bytes.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t maxSize, unsigned seed) {
    if (size == 0 || data[0] % 2 == 0 || seed % 4 == 0) return LLVMFuzzerMutate(data, size, maxSize);
    const std::string json = dllama::test::mutateJson({reinterpret_cast<const char*>(data) + 1, size - 1}, seed);
    if (json.size() + 1 > maxSize) return size;
    std::memcpy(data + 1, json.data(), json.size());
    return json.size() + 1;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace dllama;
    // The reader maps a file, so the bytes become one, in memory.
    static const int descriptor = ::memfd_create("fuzz", 0);
    static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
    const std::string bytes = fileOf(data, size);
    if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, bytes.data(), bytes.size(), 0) < 0) return 0;
    try {
        const ModelFile model(path);
        checkTensors(makeArchitecture(model.config()), model, path);
        std::vector<std::byte> scratch;
        for (const TensorInfo& tensor : model.tensors()) model.read(model.whole(tensor.name), scratch);
    } catch (const Error&) {
        return 0;
    }
    return 0;
}
