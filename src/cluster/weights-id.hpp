#pragma once

#include "cluster/cluster-setup.hpp"
#include "format/model-file.hpp"

namespace dllama {

/// Names a model's weights. distributed-llama's own files carry no hashes: theirs is made of a sample of each tensor.
uint64_t weightsId(const ModelFile& file);

/// The parts of the setup that come from the file.
void describeModel(const ModelFile& file, const Architecture& arch, ClusterSetup& setup);

}  // namespace dllama
