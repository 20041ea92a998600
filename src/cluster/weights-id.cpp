#include "cluster/weights-id.hpp"

#include <xxhash.h>

#include <algorithm>

namespace dllama {

uint64_t weightsId(const ModelFile& file) {
    if (file.tensors().empty() || file.tensorHash(file.tensors().front().name) != 0) return file.contentId();
    constexpr int64_t kSampleRows = 4;
    XXH3_state_t* state = XXH3_createState();
    XXH3_64bits_reset_withSeed(state, file.contentId());
    std::vector<std::byte> scratch;
    for (const TensorInfo& tensor : file.tensors()) {
        // From the middle: first rows often hold rare tokens.
        const int64_t begin = tensor.rows / 2;
        const auto sample =
            file.read({tensor.name, begin, std::min(tensor.rows, begin + kSampleRows), 0, tensor.cols}, scratch);
        XXH3_64bits_update(state, sample.data(), sample.size());
    }
    const uint64_t id = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return id;
}

void describeModel(const ModelFile& file, const Architecture& arch, ClusterSetup& setup) {
    setup.config = arch.config;
    setup.modelId = weightsId(file);
    setup.weightType = file.weightType();
    for (const TensorDecl& decl : declareTensors(arch)) {
        const DType stored = file.info(decl.name).dtype;
        if (stored != (decl.isWeight ? setup.weightType : DType::F32)) setup.exceptions[decl.name] = stored;
    }
}

}  // namespace dllama
